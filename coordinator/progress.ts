/**
 * Progress of long work, on stderr: a bar on a terminal, otherwise a line at each quarter once it has taken longer than
 * a second. Never writes to stdout, which belongs to the answer.
 */
import { SingleBar } from 'cli-progress';

export interface Progress extends Disposable {
  /** @param done units of `total` finished so far */
  update(done: number): void;
}

/** @param unit divides what is shown: { name: 'MB', size: 1e6 } */
export function startProgress(label: string, total: number, unit: { name: string; size: number }): Progress {
  return process.stderr.isTTY ? barProgress(label, total, unit) : lineProgress(label, total, unit);
}

function barProgress(label: string, total: number, unit: { name: string; size: number }): Progress {
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

function lineProgress(label: string, total: number, unit: { name: string; size: number }): Progress {
  const startedAt = performance.now();
  let nextQuarter = 1;
  return {
    update(done) {
      if (done < (nextQuarter / 4) * total) return;
      nextQuarter = Math.floor((4 * done) / total) + 1;
      if (performance.now() - startedAt < 1000) return;
      process.stderr.write(`${label}: ${Math.round(done / unit.size)}/${Math.round(total / unit.size)} ${unit.name}\n`);
    },
    [Symbol.dispose]: () => undefined,
  };
}
