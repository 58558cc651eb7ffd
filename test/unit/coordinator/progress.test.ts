import { expect, test } from 'vitest';
import { lineProgress } from '../../../coordinator/progress.ts';

function linesOf(msPerUnit: number): string[] {
  const lines: string[] = [];
  let ms = 0;
  const unit = { name: 'MB', size: 1 };
  const progress = lineProgress({
    label: 'downloading',
    total: 8,
    unit,
    now: () => ms,
    write: (line) => void lines.push(line),
  });
  for (let done = 1; done <= 8; done++) {
    ms = done * msPerUnit;
    progress.update(done);
  }
  return lines;
}

test('where nothing can be redrawn: a line at each quarter, with the time left', () => {
  expect(linesOf(50_000)).toEqual([
    'downloading: 2/8 MB, 5m0s left\n',
    'downloading: 4/8 MB, 3m20s left\n',
    'downloading: 6/8 MB, 1m40s left\n',
    'downloading: 8/8 MB, in 6m40s\n',
  ]);
});

test('work of less than a second is not worth a line', () => {
  expect(linesOf(100)).toEqual([]);
});
