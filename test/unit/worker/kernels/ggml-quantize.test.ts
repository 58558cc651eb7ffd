import { describe, expect, it } from 'vitest';
import { createGgmlKernels } from '../../../../worker/kernels/ggml/ggml.ts';
import { quantize } from '../../../../worker/kernels/ggml/quantize.ts';
import type { TensorType } from '../../../../worker/kernels/kernels.ts';
import { expectClose } from '../../../helpers/expect-close.ts';
import { expectedMatmul } from '../../../suites/kernels/expected.ts';
import { evaluate, place, placeIndices, randomValues } from '../../../suites/kernels/harness.ts';

/** Largest error of one weight in -1 .. 1, and of a product of 256 of them: x is rounded too, to 8 bits or to the type. */
const TYPES: readonly (readonly [type: TensorType, weightError: number, productError: number])[] = [
  ['f32', 0, 1e-5],
  ['f16', 2 ** -11, 1e-2],
  ['bf16', 2 ** -8, 5e-2],
  ['q8_0', 0.5 / 127 + 1e-3, 0.2],
  ['q4_0', 1 / 7.5, 0.2],
  ['q4_1', 1 / 14, 0.2],
  ['q5_0', 1 / 15, 0.2],
  ['q5_1', 1 / 30, 0.2],
  ['q2_K', 0.6, 0.2],
  ['q3_K', 0.4, 0.2],
  ['q4_K', 0.15, 0.2],
  ['q5_K', 0.08, 0.2],
  ['q6_K', 0.05, 0.2],
  ['iq4_nl', 0.2, 0.2],
];

describe('quantize', () => {
  for (const [type, weightError, productError] of TYPES) {
    it(`makes ${type} rows that gatherRows decodes and matmul multiplies, also from a slice of rows`, () => {
      using kernels = createGgmlKernels({ threads: 1, device: '' });
      expect(kernels.supportsWeights(type)).toBe(true);
      const weight = randomValues(1, [11, 256]);
      const x = place(kernels, randomValues(2, [3, 256]));
      const tensor = kernels.allocate(type, [11, 256]);
      kernels.upload(tensor, quantize(type, weight.data, 11, 256));
      const rows = placeIndices(kernels, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
      const decoded = evaluate(kernels, (ops) => ops.gatherRows(tensor, rows), [11, 256]);
      expectClose(decoded, weight.data, { absolute: weightError, relative: 0 });
      const products = evaluate(kernels, (ops) => ops.matmul(ops.slice(tensor, 0, 2, 7), x), [3, 7]);
      const expected = expectedMatmul(
        { shape: [1, 7, 256], data: decoded.slice(512, 512 + 7 * 256) },
        { shape: [1, 3, 256], data: randomValues(2, [3, 256]).data },
      );
      expectClose(products, expected, { absolute: productError, relative: 0 });
    });
  }

  it('refuses rows that are no whole number of blocks', () => {
    expect(() => quantize('q8_0', new Float32Array(66), 2, 33)).toThrow('must be a multiple of 32, the block of q8_0');
    expect(() => quantize('q8_0', new Float32Array(63), 2, 32)).toThrow('quantize [2, 32] to q8_0: got 63 values');
    expect(() => quantize('i32', new Float32Array(1), 1, 1)).toThrow('not a type of weights');
  });
});
