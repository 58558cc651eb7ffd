/** Conformance of the two halves of `attend` that sharded schemes use: parts of the positions, and given scores. */
import { describe, expect } from 'vitest';
import { expectClose } from '../../helpers/expect-close.ts';
import { randomHalves } from '../../helpers/random.ts';
import type { AttendOptions, Kernels } from '../../../worker/kernels/kernels.ts';
import { expectedAttend, expectedMatmul, expectedSlice } from './expected.ts';
import type { Values } from './expected.ts';
import { causalMask, evaluate, place, placeBits, randomValues, read } from './harness.ts';
import type { KernelSuite } from './harness.ts';

export function describeAttentionParts({ test, tolerances }: KernelSuite): void {
  describe('attendPartial', () => {
    for (const [tokens, length, start, softcap] of [
      [1, 1, 0, 0],
      [1, 300, 299, 0],
      [5, 40, 11, 0],
      [3, 259, 256, 4],
      [70, 96, 20, 0],
    ] as const) {
      test(`attendPartial: ${tokens} tokens, ${length} rows, softcap ${softcap}`, (kernels) => {
        const q = randomValues(81, [7, tokens, 40], -3, 3);
        const rows = randomValues(82, [1, length, 40], -3, 3);
        const mask = { shape: [tokens, length], data: causalMask(tokens, length, start) };
        const options = { scale: 0.4, softcap };
        const { out, logSumExp } = attendPartial(kernels, q, rows, mask, options);
        const values = expectedSlice(rows, 2, 0, 32);
        expectClose(out, expectedAttend(q, rows, values, mask.data, 0.4, softcap), tolerances.attend);
        expectClose(logSumExp, expectedLogSumExp(q, rows, mask.data, options), tolerances.attend);
      });
    }

    test('attendPartial: large and equal scores', (kernels) => {
      const rows = { shape: [1, 500, 40], data: new Float32Array(500 * 40).fill(5) };
      const query = { shape: [2, 1, 40], data: Float32Array.from({ length: 80 }, (_, i) => (i % 40 < 8 ? 5 : 0)) };
      const mask = { shape: [1, 500], data: new Float32Array(500) };
      const { logSumExp } = attendPartial(kernels, query, rows, mask, { scale: 1, softcap: 0 });
      expectClose(logSumExp, [200 + Math.log(500), 200 + Math.log(500)], tolerances.attend);
    });

    test('attendPartial: parts of the positions merge to the whole, also with an empty part', (kernels) => {
      const [heads, tokens, length] = [3, 4, 90];
      const q = randomValues(83, [heads, tokens, 40], -2, 2);
      const rows = randomValues(84, [1, length, 40], -2, 2);
      const visible = causalMask(tokens, length, 60);
      const options = { scale: 0.3, softcap: 0 };
      const merged = new Float64Array(heads * tokens * 32);
      const bounds = [
        [0, 33],
        [33, 62], // the second token is the last position of this part
        [62, 90], // the first two tokens see nothing of it
      ] as const;
      const parts = bounds.map(([from, to]) => {
        const data = Float32Array.from(visible, (value, i) =>
          i % length >= from && i % length < to ? value : -Infinity,
        );
        return attendPartial(kernels, q, rows, { shape: [tokens, length], data }, options);
      });
      for (let row = 0; row < heads * tokens; row++) {
        const largest = Math.max(...parts.map((part) => part.logSumExp[row]!));
        const weights = parts.map((part) => Math.exp(part.logSumExp[row]! - largest));
        const total = weights.reduce((a, b) => a + b, 0);
        for (let d = 0; d < 32; d++)
          for (const [i, part] of parts.entries())
            merged[row * 32 + d]! += (weights[i]! / total) * part.out[row * 32 + d]!;
      }
      const values = expectedSlice(rows, 2, 0, 32);
      // Each part is rounded to float32 before it is merged here.
      const tolerance = { ...tolerances.attend, absolute: tolerances.attend.absolute + 1e-6 };
      expectClose(merged, expectedAttend(q, rows, values, visible, 0.3, 0), tolerance);
    });

    test('attendPartial: a fully masked token', (kernels) => {
      const q = randomValues(85, [2, 2, 40]);
      const rows = randomValues(86, [1, 6, 40]);
      const mask = { shape: [2, 6], data: Float32Array.from({ length: 12 }, (_, i) => (i < 6 ? -Infinity : 0)) };
      const options = { scale: 1, softcap: 0 };
      const { out, logSumExp } = attendPartial(kernels, q, rows, mask, options);
      const expected = expectedLogSumExp(q, rows, mask.data, options);
      for (const head of [0, 1]) {
        expect(logSumExp[2 * head]).toBeLessThan(-1e29);
        expect(Number.isFinite(logSumExp[2 * head])).toBe(true);
        expect([...out.subarray(2 * head * 32, (2 * head + 1) * 32)]).toEqual(new Array(32).fill(0));
        expectClose([logSumExp[2 * head + 1]!], [expected[2 * head + 1]!], tolerances.attend);
      }
    });

    for (const softcap of [0, 5])
      test(`attendPartial with a mask for each batch of keys, softcap ${softcap}`, (kernels) => {
        const q = randomValues(89, [6, 2, 40], -2, 2);
        const rows = randomValues(90, [3, 45, 40], -2, 2);
        const masks = [0, 20, 43].map((start) => causalMask(2, 45, start));
        masks[1]?.fill(-Infinity, 0, 45); // of one token of one sequence nothing is visible
        const mask = { shape: [3, 2, 45], data: Float32Array.from(masks.flatMap((each) => [...each])) };
        const options = { scale: 0.3, softcap };
        const { out, logSumExp } = attendPartial(kernels, q, rows, mask, options);
        masks.forEach((data, g) => {
          const own = attendPartial(kernels, expectedSlice(q, 0, 2 * g, 2), expectedSlice(rows, 0, g, 1), { shape: [2, 45], data }, options); // prettier-ignore
          expectClose(out.subarray(2 * g * 64, 2 * (g + 1) * 64), own.out, tolerances.attend);
          expectClose(logSumExp.subarray(4 * g, 4 * (g + 1)), own.logSumExp, tolerances.attend);
        });
      });

    test('attendPartial over an f16 cache', (kernels) => {
      const { bits, values } = randomHalves(87, 45 * 40);
      const rows = { shape: [1, 45, 40], data: values };
      const q = randomValues(88, [6, 2, 40]);
      const mask = { shape: [2, 45], data: causalMask(2, 45, 40) };
      const options = { scale: 0.3, softcap: 0 };
      const { out, logSumExp } = attendPartial(kernels, q, rows, mask, options, bits);
      expectClose(out, expectedAttend(q, rows, expectedSlice(rows, 2, 0, 32), mask.data, 0.3, 0), tolerances.attendF16);
      expectClose(logSumExp, expectedLogSumExp(q, rows, mask.data, options), tolerances.attendF16);
    });
  });

  describe('attendScores', () => {
    for (const [heads, groups, softcap] of [
      [9, 1, 0],
      [6, 3, 0],
      [5, 1, 3],
    ] as const) {
      test(`attendScores of ${heads} heads over ${groups} of values, softcap ${softcap}`, (kernels) => {
        const scores = randomValues(91, [heads, 3, 70], -8, 8);
        // Against these keys the scores are their own dot products.
        const unit = {
          shape: [groups, 70, 70],
          data: Float32Array.from({ length: groups * 4900 }, (_, i) => ((i % 4900) % 71 === 0 ? 1 : 0)),
        };
        const values = randomValues(93, [groups, 70, 20]);
        const mask = { shape: [3, 70], data: causalMask(3, 70, 50) };
        const actual = evaluate(
          kernels,
          (ops) =>
            ops.attendScores(
              place(kernels, scores),
              ops.slice(place(kernels, values), 2, 4, 16),
              place(kernels, mask),
              { scale: 0.25, softcap },
            ),
          [heads, 3, 16],
        );
        const expected = expectedAttend(scores, unit, expectedSlice(values, 2, 4, 16), mask.data, 0.25, softcap);
        expectClose(actual, expected, tolerances.attend);
      });
    }
  });
}

/** Rows [1, length, 40] are keys, their first 32 columns values. @param bits the rows as f16 */
function attendPartial(
  kernels: Kernels,
  q: Values,
  rows: Values,
  mask: Values,
  options: AttendOptions,
  bits?: Uint16Array,
): { out: Float32Array; logSumExp: Float32Array } {
  const cache = bits === undefined ? place(kernels, rows) : placeBits(kernels, 'f16', rows.shape, bits);
  const [query, placedMask] = [place(kernels, q), place(kernels, mask)];
  using programs = kernels.compile([
    (ops) => {
      const { out, logSumExp } = ops.attendPartial(query, cache, ops.slice(cache, 2, 0, 32), placedMask, options);
      return [out, logSumExp];
    },
  ]);
  programs.run(0);
  const [out, logSumExp] = programs.outputs[0]!;
  expect([out!.shape, logSumExp!.shape]).toEqual([[...q.shape.slice(0, 2), 32], q.shape.slice(0, 2)]);
  return { out: read(kernels, out!), logSumExp: read(kernels, logSumExp!) };
}

/** [heads, tokens] */
function expectedLogSumExp(q: Values, keys: Values, mask: ArrayLike<number>, options: AttendOptions): number[] {
  const [heads = 0, tokens = 0] = q.shape;
  const length = keys.shape[1]!;
  const raw = expectedMatmul(keys, q);
  return Array.from({ length: heads * tokens }, (_, row) => {
    const scores = Array.from({ length }, (_unused, s) => {
      const score = options.scale * raw[row * length + s]!;
      const capped = options.softcap === 0 ? score : options.softcap * Math.tanh(score / options.softcap);
      return capped + mask[(row % tokens) * length + s]!;
    });
    const largest = Math.max(...scores);
    return largest + Math.log(scores.reduce((sum, score) => sum + Math.exp(score - largest), 0));
  });
}
