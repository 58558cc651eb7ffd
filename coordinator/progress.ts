/**
 * Progress of long work, on stderr: a bar with the time left on a terminal, otherwise a line with it at each quarter once
 * the work has taken longer than a second. Never writes to stdout, which belongs to the answer, and no control codes to a
 * file, a pipe or a terminal that can only print.
 */
import { canRedraw } from './terminal/terminal.ts';

export interface Progress extends Disposable {
  /** @param done units of `total` finished so far */
  update(done: number): void;
  /** A line for the user meanwhile: above the bar, not through it. */
  log(line: string): void;
}

export interface Unit {
  readonly name: string;
  /** Divides what is shown: { name: 'MB', size: 1e6 } */
  readonly size: number;
}

/** Work that takes less is not worth a line. */
const quietMs = 1000;
const barWidth = 30;
const redrawMs = 100;

export function startProgress(label: string, total: number, unit: Unit): Progress {
  const { stderr, env } = process;
  if (canRedraw(stderr, env)) return barProgress(label, total, unit, stderr);
  return lineProgress({ label, total, unit, now: () => performance.now(), write: (line) => void stderr.write(line) });
}

/** Redrawn on its own line, so that other lines may come between. */
function barProgress(label: string, total: number, unit: Unit, output: NodeJS.WriteStream): Progress {
  const startedAt = performance.now();
  let done = 0;
  let drawnAt = -Infinity;
  const draw = (): void => {
    drawnAt = performance.now();
    const ms = drawnAt - startedAt;
    const filled = Math.round((barWidth * Math.min(done, total)) / Math.max(1, total));
    const bar = `[${'='.repeat(filled)}${' '.repeat(barWidth - filled)}]`;
    const line = `${label} ${bar} ${amount(done, total, unit)}, ${time(done, total, ms)}`;
    output.write(`\r\u001b[K${line.slice(0, output.columns - 1)}`);
  };
  draw();
  return {
    update(now) {
      done = now;
      if (done >= total || performance.now() - drawnAt >= redrawMs) draw();
    },
    log(line) {
      output.write(`\r\u001b[K${line}\n`);
      draw();
    },
    [Symbol.dispose]() {
      draw();
      output.write('\n');
    },
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
      write(`${label}: ${amount(done, total, unit)}, ${time(done, total, ms)}\n`);
    },
    log: (line) => write(`${line}\n`),
    [Symbol.dispose]: () => undefined,
  };
}

function amount(done: number, total: number, { name, size }: Unit): string {
  return `${Math.round(done / size)}/${Math.round(total / size)} ${name}`;
}

/** What is left at the speed so far; when all is done, what it took. */
function time(done: number, total: number, ms: number): string {
  if (done >= total) return `in ${duration(ms)}`;
  return done > 0 ? `${duration((ms * (total - done)) / done)} left` : 'time left unknown';
}

/** 42s, 3m5s */
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
