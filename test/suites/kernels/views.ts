/** Conformance of views and of the operations that only move numbers. */
import { describe } from 'vitest';
import { expectClose } from '../../helpers/expect-close.ts';
import { randomBrainFloats, randomHalves } from '../../helpers/random.ts';
import { EXACT } from '../../helpers/tolerances.ts';
import { expectedPermute, expectedSlice, nearestHalf } from './expected.ts';
import { evaluate, place, placeBits, placeIndices, randomValues, read } from './harness.ts';
import type { KernelSuite } from './harness.ts';

export function describeViews({ test }: KernelSuite): void {
  describe('views and copies', () => {
    test('contiguous makes a row-major copy of a permuted slice', (kernels) => {
      const x = randomValues(41, [5, 7, 9]);
      for (const order of [
        [0, 1, 2],
        [1, 0, 2],
        [2, 1, 0],
        [0, 2, 1],
      ]) {
        const expected = expectedPermute(expectedSlice(x, 1, 2, 4), order);
        const actual = evaluate(
          kernels,
          (ops) => ops.contiguous(ops.permute(ops.slice(place(kernels, x), 1, 2, 4), order)),
          expected.shape,
        );
        expectClose(actual, expected.data, EXACT);
      }
    });

    test('reshape splits and joins heads', (kernels) => {
      const x = randomValues(42, [3, 20]);
      const actual = evaluate(
        kernels,
        (ops) => {
          const heads = ops.permute(ops.reshape(place(kernels, x), [3, 4, 5]), [1, 0, 2]); // [heads, tokens, dim]
          return ops.reshape(ops.contiguous(ops.permute(heads, [1, 0, 2])), [3, 20]);
        },
        [3, 20],
      );
      expectClose(actual, x.data, EXACT);
    });

    test('concat along each axis, of views too', (kernels) => {
      const a = randomValues(43, [2, 3, 5]);
      for (const axis of [0, 1, 2]) {
        const b = randomValues(44, a.shape.with(axis, 4));
        const shape = a.shape.with(axis, a.shape[axis]! + 4);
        const actual = evaluate(kernels, (ops) => ops.concat([place(kernels, a), place(kernels, b)], axis), shape);
        const joined = { shape, data: actual };
        expectClose(expectedSlice(joined, axis, 0, a.shape[axis]!).data, a.data, EXACT);
        expectClose(expectedSlice(joined, axis, a.shape[axis]!, 4).data, b.data, EXACT);
      }
      const c = randomValues(45, [3, 2, 5]);
      const actual = evaluate(
        kernels,
        (ops) => ops.concat([ops.permute(place(kernels, c), [1, 0, 2]), ops.slice(place(kernels, a), 2, 1, 2)], 2),
        [2, 3, 7],
      );
      const joined = { shape: [2, 3, 7], data: actual };
      expectClose(expectedSlice(joined, 2, 0, 5).data, expectedPermute(c, [1, 0, 2]).data, EXACT);
      expectClose(expectedSlice(joined, 2, 5, 2).data, expectedSlice(a, 2, 1, 2).data, EXACT);
    });

    test('concat with an empty part', (kernels) => {
      const a = randomValues(46, [3, 4]);
      const empty = kernels.allocate('f32', [3, 0]);
      expectClose(
        evaluate(kernels, (ops) => ops.concat([empty, place(kernels, a)], 1), [3, 4]),
        a.data,
        EXACT,
      );
    });

    test('gatherRows from f32, f16 and bf16 tables', (kernels) => {
      const indices = [10, 0, 3, 3, 7];
      const pick = (data: ArrayLike<number>) =>
        indices.flatMap((row) => Array.from(data).slice(row * 64, row * 64 + 64));
      const table = randomValues(47, [11, 64]);
      const gather = (tensor: ReturnType<typeof place>) =>
        evaluate(kernels, (ops) => ops.gatherRows(tensor, placeIndices(kernels, indices)), [5, 64]);
      expectClose(gather(place(kernels, table)), pick(table.data), EXACT);
      if (kernels.supportsWeights('f16')) {
        const { bits, values } = randomHalves(48, 11 * 64);
        expectClose(gather(placeBits(kernels, 'f16', [11, 64], bits)), pick(values), EXACT);
      }
      if (kernels.supportsWeights('bf16')) {
        const { bits, values } = randomBrainFloats(49, 11 * 64);
        expectClose(gather(placeBits(kernels, 'bf16', [11, 64], bits)), pick(values), EXACT);
      }
    });

    for (const type of ['f32', 'f16'] as const) {
      test(`scatterRows into ${type} leaves other rows alone`, (kernels) => {
        const cache = kernels.allocate(type, [6, 35]);
        const rows = randomValues(50, [3, 70]);
        const all = placeIndices(kernels, [0, 1, 2, 3, 4, 5]);
        const actual = evaluate(
          kernels,
          (ops) => {
            const view = ops.slice(place(kernels, rows), 1, 20, 35);
            ops.scatterRows(cache, view, placeIndices(kernels, [4, 0, 5]));
            return ops.gatherRows(cache, all);
          },
          [6, 35],
        );
        const expected = new Float32Array(6 * 35);
        [4, 0, 5].forEach((row, t) => {
          const stored = Array.from(rows.data.subarray(t * 70 + 20, t * 70 + 55), (value) =>
            type === 'f16' ? nearestHalf(value) : value,
          );
          expected.set(stored, row * 35);
        });
        expectClose(actual, expected, EXACT);
      });
    }

    test('copyTo writes a whole tensor, a slice, and from a transposed view', (kernels) => {
      const x = randomValues(51, [4, 6]);
      const whole = kernels.allocate('f32', [4, 6]);
      const partial = kernels.allocate('f32', [9, 6]);
      const transposed = kernels.allocate('f32', [6, 4]);
      using programs = kernels.compile([
        (ops) => {
          const input = place(kernels, x);
          ops.copyTo(whole, input);
          ops.copyTo(ops.slice(partial, 0, 3, 4), ops.scale(input, 2));
          ops.copyTo(transposed, ops.permute(input, [1, 0]));
          return [];
        },
      ]);
      programs.run(0);
      expectClose(read(kernels, whole), x.data, EXACT);
      const expected = new Float32Array(54);
      expected.set(
        x.data.map((value) => value * 2),
        18,
      );
      expectClose(read(kernels, partial), expected, EXACT);
      expectClose(read(kernels, transposed), expectedPermute(x, [1, 0]).data, EXACT);
    });

    test('upload at an offset and download of a part', (kernels) => {
      const tensor = kernels.allocate('f32', [4, 3]);
      const values = randomValues(52, [3]);
      // One byte in front, so that the bytes are not aligned to the number they hold.
      const padded = new Uint8Array(13);
      padded.set(new Uint8Array(values.data.buffer), 1);
      kernels.upload(tensor, padded.subarray(1), 24);
      const out = new Float32Array(10).fill(NaN);
      kernels.download(tensor, out);
      expectClose(out, [0, 0, 0, 0, 0, 0, ...values.data, 0], EXACT);
    });
  });
}
