import { describe, expect, test } from 'vitest';
import { InvariantError } from '../../../config/errors.ts';
import { cut, size, type Range } from '../../../config/shard-plan.ts';
import { combineScores, joinLogits, joinMoments } from '../../../coordinator/join-shards.ts';

/** Distinct in every place. */
const logitOf = (row: number, token: number): number => Math.fround(Math.sin(row * 31 + token * 7) * 5);

function logitRows(rows: number, vocab: Range): Float32Array {
  const out = new Float32Array(rows * size(vocab));
  for (let row = 0; row < rows; row++)
    for (let i = 0; i < size(vocab); i++) out[row * size(vocab) + i] = logitOf(row, vocab.start + i);
  return out;
}

/** What a rank sends for `want: score`. */
function scoreRows(targets: readonly number[], vocab: Range): Float32Array {
  const out = new Float32Array(3 * targets.length);
  for (const [row, target] of targets.entries()) {
    if (target < 0) continue;
    const logits = [...logitRows(row + 1, vocab).subarray(row * size(vocab))];
    const max = Math.max(...logits);
    const mine = target >= vocab.start && target < vocab.end;
    out.set(
      [max, logits.reduce((sum, x) => sum + Math.exp(x - max), 0), mine ? logitOf(row, target) : -Infinity],
      3 * row,
    );
  }
  return out;
}

const vocabularies: [string, number, number[]][] = [
  ['one rank', 11, [1]],
  ['three, uneven', 11, [2, 1, 1]],
  ['more ranks than rows', 3, [1, 1, 1, 1, 1]],
];

describe.each(vocabularies)('%s', (_, vocabSize, shares) => {
  const ranges = cut(vocabSize, shares, 1);

  test('logits are joined in the order of the vocabulary', () => {
    const parts = ranges.map((vocab) => ({ vocab, payload: logitRows(4, vocab) }));
    expect(joinLogits(parts, 4, vocabSize)).toEqual(logitRows(4, { start: 0, end: vocabSize }));
  });

  test('scores equal the log-softmax of the whole row', () => {
    const targets = [2, -1, 0, vocabSize - 1];
    const nll = combineScores(
      ranges.map((vocab) => ({ vocab, payload: scoreRows(targets, vocab) })),
      targets,
    );
    for (const [row, target] of targets.entries()) {
      if (target < 0) {
        expect(nll[row]).toBe(0);
        continue;
      }
      let sum = 0;
      for (let token = 0; token < vocabSize; token++) sum += Math.exp(logitOf(row, token));
      expect(nll[row]).toBeCloseTo(Math.log(sum) - logitOf(row, target), 5);
    }
  });
});

test('large logits do not overflow', () => {
  const part = (start: number, row: number[]) => ({
    vocab: { start, end: start + 1 },
    payload: Float32Array.from(row),
  });
  const nll = combineScores([part(0, [1000, 1, 1000]), part(1, [990, 1, -Infinity])], [0]);
  expect(nll[0]).toBeCloseTo(Math.log1p(Math.exp(-10)), 9);
});

test('a payload of the wrong length is a bug', () => {
  const vocab = { start: 0, end: 4 };
  expect(() => joinLogits([{ vocab, payload: new Float32Array(7) }], 2, 4)).toThrow(
    new InvariantError('logits: expected 2 x 4 numbers, got 7'),
  );
  expect(() => combineScores([{ vocab, payload: new Float32Array(2) }], [1])).toThrow(
    new InvariantError('scores: expected 1 x 3 numbers, got 2'),
  );
});

test('moments are joined by rows, ranks without rows included', () => {
  const dim = 3;
  const rows = cut(dim, [1, 1, 1, 1, 1], 1);
  const outer = Float32Array.from({ length: dim * dim }, (_, i) => i + 1);
  const sum = Float32Array.of(10, 20, 30);
  const payloads = rows.map(({ start, end }) => Float32Array.from([...outer.subarray(start * dim, end * dim), ...sum]));
  expect(joinMoments(payloads, rows, dim)).toEqual({ outer, sum });
});
