/** Which sequences of a decode step one attention takes at once, and how many rows it reads of each. */
import { expect, test } from 'vitest';
import { causalMask, chunksOf, joinMasks, type ChunkRun } from '../../../worker/chunks.ts';

const deal = { part: 0, parts: 1, block: 1 };
const layout = { rowsPerSlot: 4096, readStep: 256, deal, spareRow: 64 * 4096 };

/** Runs of a step with one token of each: [slot, tokens before it]. */
function runsOf(sequences: readonly (readonly [number, number])[], joins = true): readonly ChunkRun[] {
  const [chunk] = chunksOf(
    {
      kind: 'step',
      id: 0,
      phase: 'decode',
      sequences: sequences.map(([slot, start]) => ({ slot, start, tokens: [7 + slot] })),
      want: { kind: 'last' },
    },
    layout,
    joins,
  );
  return chunk?.runs ?? [];
}

const shapeOf = (runs: readonly ChunkRun[]): string =>
  runs.map((run) => `${run[0].slot}..${run.at(-1)?.slot} reads ${run[0].paddedRows}`).join(', ');

test.each([
  ['one sequence alone', [[3, 40]], '3..3 reads 64'],
  [
    'slots side by side',
    [
      [0, 40],
      [1, 90],
      [2, 63],
    ],
    '0..2 reads 128',
  ],
  [
    'a slot between them that does not decode',
    [
      [0, 40],
      [1, 40],
      [3, 40],
    ],
    '0..1 reads 128, 3..3 reads 128',
  ],
  [
    'one that is much longer',
    [
      [0, 40],
      [1, 3000],
      [2, 40],
    ],
    '0..0 reads 192, 1..1 reads 3072, 2..2 reads 192',
  ],
  [
    'lengths that differ a little',
    [
      [0, 1000],
      [1, 1400],
      [2, 1200],
    ],
    '0..2 reads 1408',
  ],
  [
    'more rows than are widened at once',
    [
      [0, 4000],
      [1, 4000],
      [2, 4000],
    ],
    '0..1 reads 4096, 2..2 reads 4096',
  ],
] as const)('%s', (_, sequences, expected) => {
  expect(shapeOf(runsOf(sequences))).toBe(expected);
});

test('without joining every sequence reads for itself, in whole steps', () => {
  expect(shapeOf(runsOf([[0, 40], [1, 300]], false))).toBe('0..0 reads 256, 1..1 reads 512'); // prettier-ignore
});

test('segments lie one behind the other, and each run has the masks of its own', () => {
  const [run] = runsOf([[4, 40], [5, 90]]); // prettier-ignore
  expect(run?.map(({ slot, offset, length, start }) => [slot, offset, length, start])).toEqual([
    [4, 0, 1, 40],
    [5, 1, 1, 90],
  ]);
  const masks = joinMasks(run!.map((segment) => causalMask(segment, deal, 0)));
  const visible = [0, 1].map((i) => masks.subarray(128 * i, 128 * (i + 1)).filter((value) => value === 0).length);
  expect([masks.length, ...visible]).toEqual([256, 41, 91]);
});

test('prompts are never joined', () => {
  const sequences = [0, 1].map((slot) => ({ slot, start: 0, tokens: [1, 2, 3] }));
  const [chunk] = chunksOf({ kind: 'step', id: 0, phase: 'decode', sequences, want: { kind: 'last' } }, layout, true);
  expect(chunk?.runs.map((run) => run.length)).toEqual([1, 1]);
});
