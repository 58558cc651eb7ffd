/** Conformance of `rope` and `rmsNorm`. */
import { describe } from 'vitest';
import { expectClose } from '../../helpers/expect-close.ts';
import { expectedRmsNorm, expectedRope, expectedSlice } from './expected.ts';
import { evaluate, place, placeIndices, randomValues } from './harness.ts';
import type { KernelSuite } from './harness.ts';

export function describeRopeAndNorm({ test, tolerances }: KernelSuite): void {
  describe('rope and rmsNorm', () => {
    for (const interleaved of [true, false]) {
      for (const [heads, dim] of [
        [1, 2],
        [3, 10],
        [9, 64],
      ] as const) {
        test(`rope of ${heads} heads of ${dim}, ${interleaved ? 'neighbours' : 'halves'}`, (kernels) => {
          const positions = [0, 1, 17, 4095, 8192];
          const frequencies = inverseFrequencies(dim);
          const x = randomValues(31, [positions.length, heads, dim]);
          const actual = evaluate(
            kernels,
            (ops) =>
              ops.rope(
                place(kernels, x),
                placeIndices(kernels, positions),
                place(kernels, { shape: [dim / 2], data: frequencies }),
                { interleaved, attentionFactor: 1.25 },
              ),
            x.shape,
          );
          expectClose(actual, expectedRope(x, positions, frequencies, interleaved, 1.25), tolerances.rope);
        });
      }

      test(`rope of the last columns of a query, ${interleaved ? 'neighbours' : 'halves'}`, (kernels) => {
        const positions = [300, 5];
        const frequencies = inverseFrequencies(6);
        const query = randomValues(32, [2, 5, 17]); // [tokens, heads, nope + rope]
        const actual = evaluate(
          kernels,
          (ops) =>
            ops.rope(
              ops.slice(place(kernels, query), 2, 11, 6),
              placeIndices(kernels, positions),
              place(kernels, { shape: [3], data: frequencies }),
              { interleaved, attentionFactor: 1 },
            ),
          [2, 5, 6],
        );
        const rotated = expectedSlice(query, 2, 11, 6);
        expectClose(actual, expectedRope(rotated, positions, frequencies, interleaved, 1), tolerances.rope);
      });
    }

    test('rmsNorm of rows of several widths', (kernels) => {
      for (const shape of [
        [1, 1],
        [2, 33],
        [3, 2, 64],
        [1, 576],
      ]) {
        const x = randomValues(33, shape, -4, 4);
        const actual = evaluate(kernels, (ops) => ops.rmsNorm(place(kernels, x), 1e-5), shape);
        expectClose(actual, expectedRmsNorm(x, 1e-5), tolerances.rmsNorm);
      }
    });

    test('rmsNorm of a slice, then a gain', (kernels) => {
      const x = randomValues(34, [3, 50]);
      const gain = randomValues(35, [21]);
      const actual = evaluate(
        kernels,
        (ops) => ops.multiply(ops.rmsNorm(ops.slice(place(kernels, x), 1, 4, 21), 1e-6), place(kernels, gain)),
        [3, 21],
      );
      const expected = expectedRmsNorm(expectedSlice(x, 1, 4, 21), 1e-6).map((value, i) => value * gain.data[i % 21]!);
      expectClose(actual, expected, tolerances.rmsNorm);
    });
  });
}

/** 10000^(-2i / dim), as float32. */
function inverseFrequencies(dim: number): Float32Array {
  return Float32Array.from({ length: dim / 2 }, (_, i) => 10000 ** ((-2 * i) / dim));
}
