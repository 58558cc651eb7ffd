/**
 * Progress of long work, on stderr: a bar with the time left on a terminal, otherwise a line with it at each quarter once
 * the work has taken longer than a second. Never writes to stdout, which belongs to the answer, and no control codes to a
 * file, a pipe or a terminal that can only print.
 */
import { SingleBar } from 'cli-progress';
import { canRedraw } from './terminal/terminal.ts';

export interface Progress extends Disposable {
  /** @param done units of `total` finished so far */
  update(done: number): void;
}

export interface Unit {
  readonly name: string;
  /** Divides what is shown: { name: 'MB', size: 1e6 } */
  readonly size: number;
}

/** Work that takes less is not worth a line. */
const quietMs = 1000;

export function startProgress(label: string, total: number, unit: Unit): Progress {
  const { stderr, env } = process;
  if (canRedraw(stderr, env)) return barProgress(label, total, unit);
  return lineProgress({ label, total, unit, now: () => performance.now(), write: (line) => void stderr.write(line) });
}

function barProgress(label: string, total: number, unit: Unit): Progress {
  const bar = new SingleBar({
    format: `${label} [{bar}] {value}/{total} ${unit.name}, {eta_formatted} left`,
    stream: process.stderr,
    hideCursor: false,
    clearOnComplete: false,
  });
  bar.start(Math.round(total / unit.size), 0);
  return {
    update: (done) => bar.update(Math.round(done / unit.size)),
    [Symbol.dispose]: () => bar.stop(),
  };
}

export interface LineProgressOptions {
  readonly label: string;
  readonly total: number;
  readonly unit: Unit;
  /** Milliseconds. */
  readonly now: () => number;
  readonly write: (text: string) => void;
}

export function lineProgress({ label, total, unit, now, write }: LineProgressOptions): Progress {
  const startedAt = now();
  let nextQuarter = 1;
  return {
    update(done) {
      if (done < (nextQuarter / 4) * total) return;
      nextQuarter = Math.floor((4 * done) / total) + 1;
      const ms = now() - startedAt;
      if (ms < quietMs) return;
      const shown = `${label}: ${Math.round(done / unit.size)}/${Math.round(total / unit.size)} ${unit.name}`;
      write(
        done < total ? `${shown}, ${duration((ms * (total - done)) / done)} left\n` : `${shown} in ${duration(ms)}\n`,
      );
    },
    [Symbol.dispose]: () => undefined,
  };
}

/** 42s, 3m5s: as the bar writes it. */
function duration(ms: number): string {
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${seconds % 60}s`;
  return `${Math.floor(seconds / 3600)}h${Math.floor((seconds % 3600) / 60)}m`;
}

/** A bar for ranks that load, from their first word until disposal; ranks that are started again later have none. */
export class LoadingProgress implements Disposable {
  #progress: Progress | undefined;
  #ended = false;

  /** For ClusterOptions.onLoading. */
  readonly report = (done: number, total: number): void => {
    if (this.#ended) return;
    this.#progress ??= startProgress('loading', total, { name: 'layers', size: 1 });
    this.#progress.update(done);
  };

  [Symbol.dispose](): void {
    this.#ended = true;
    this.#progress?.[Symbol.dispose]();
  }
}
