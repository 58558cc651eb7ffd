import { expect, it } from 'vitest';
import { joinSegments, segmentsWithin, sumSegments, windowsOfRank } from '../../../collective/window-sums.ts';

/** Numbers whose sum depends on the order of addition. */
const valuesOf = (window: number): Float64Array =>
  Float64Array.from({ length: 5 }, (_, i) => Math.sin(1 + window * 7 + i) * 10 ** ((window * 5 + i) % 9));

function summed(windows: number, worldSize: number): Float64Array {
  const payloads = Array.from({ length: worldSize }, (_, rank) =>
    sumSegments(segmentsWithin(windowsOfRank(windows, worldSize, rank), windows), 5, valuesOf),
  );
  return joinSegments(payloads, windows);
}

it.each([1, 2, 3, 7, 8, 13, 16])('%i windows: the same bits on any number of ranks', (windows) => {
  const one = summed(windows, 1);
  for (const worldSize of [2, 3, 4, 5, 8]) expect(summed(windows, worldSize)).toEqual(one);
  const plain = Array.from({ length: windows }, (_, window) => valuesOf(window));
  one.forEach((value, i) =>
    expect(value).toBeCloseTo(
      plain.reduce((sum, values) => sum + values[i]!, 0),
      4,
    ),
  );
});

it('gives a rank one sum where its windows are half of all', () => {
  expect(segmentsWithin({ start: 5, end: 10 }, 10)).toEqual([{ start: 5, end: 10 }]);
  expect(segmentsWithin({ start: 3, end: 3 }, 10)).toEqual([]);
});

it('says whose sums are missing', () => {
  const half = sumSegments([{ start: 0, end: 2 }], 5, valuesOf);
  expect(() => joinSegments([half, new Float32Array(0)], 3)).toThrow('rank 1: 0 numbers for 1 segments');
});
