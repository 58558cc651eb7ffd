import { describe, expect, it } from 'vitest';
import { createGgmlKernels } from '../../../../worker/kernels/ggml/ggml.ts';
import { quantize } from '../../../../worker/kernels/ggml/quantize.ts';
import type { Kernels, Tensor, TensorType, TensorUse } from '../../../../worker/kernels/kernels.ts';
import { expectClose } from '../../../helpers/expect-close.ts';
import { REPACKED } from '../../../helpers/tolerances.ts';
import { evaluate, place, placeIndices, randomValues } from '../../../suites/kernels/harness.ts';

const QUANTISED: readonly TensorType[] = [
  'q4_0',
  'q4_1',
  'q5_0',
  'q5_1',
  'q8_0',
  'q2_K',
  'q3_K',
  'q4_K',
  'q5_K',
  'q6_K',
];

const create = (): Kernels => createGgmlKernels({ threads: 1, device: '' });

function placeMatrix(kernels: Kernels, type: TensorType, shape: [number, number], use: TensorUse): Tensor {
  const weight = kernels.allocate(type, shape, use);
  kernels.upload(weight, quantize(type, randomValues(1, shape).data, ...shape));
  return weight;
}

describe('a matrix allocated for matmul', () => {
  for (const type of QUANTISED) {
    for (const tokens of [1, 3, 33]) {
      it(`gives the products of plain ${type} with ${tokens} tokens`, () => {
        using kernels = create();
        const x = randomValues(2, [tokens, 512]);
        const [plain, own] = (['any', 'matmul'] as const).map((use) => {
          const weight = placeMatrix(kernels, type, [96, 512], use);
          return evaluate(kernels, (ops) => ops.matmul(weight, place(kernels, x)), [tokens, 96]);
        });
        expectClose(own!, plain!, REPACKED);
      });
    }
  }

  it('takes rows that no layout of its own can hold, and columns of a wider input', () => {
    using kernels = create();
    const x = randomValues(3, [5, 192]);
    for (const rows of [1, 7, 64]) {
      const [plain, own] = (['any', 'matmul'] as const).map((use) => {
        const weight = placeMatrix(kernels, 'q8_0', [rows, 96], use);
        return evaluate(kernels, (ops) => ops.matmul(weight, ops.slice(place(kernels, x), 1, 64, 96)), [5, rows]);
      });
      expectClose(own!, plain!, REPACKED);
    }
  });

  for (const tokens of [1, 2, 33])
    it(`fills up rows that are no whole tiles, ${tokens} tokens`, () => {
      using kernels = create();
      const x = randomValues(4, [tokens, 256]);
      for (const type of ['q4_1', 'q8_0', 'q6_K'] as const) {
        const [plain, own] = (['any', 'matmul'] as const).map((use) => {
          const weight = placeMatrix(kernels, type, [150, 256], use);
          const after = place(kernels, randomValues(5, [8, 150]));
          return evaluate(kernels, (ops) => ops.matmul(after, ops.matmul(weight, place(kernels, x))), [tokens, 8]);
        });
        expectClose(own!, plain!, { ...REPACKED, absolute: 20 * (REPACKED.absolute ?? 0) });
      }
    });

  it('keeps float weights as they are', () => {
    using kernels = create();
    for (const type of ['f32', 'f16', 'bf16'] as const) expect(kernels.repacks(type, [64, 64])).toBe(false);
  });

  it('refuses views, look-ups and partial uploads where it is repacked', () => {
    using kernels = create();
    if (!kernels.repacks('q4_0', [64, 64])) return;
    const weight = placeMatrix(kernels, 'q4_0', [64, 64], 'matmul');
    const indices = placeIndices(kernels, [1]);
    const refusal = 'ggml: q4_0 [64, 64] was allocated for matmul only';
    expect(() => kernels.compile([(ops) => [ops.slice(weight, 0, 0, 32)]])).toThrow(refusal);
    expect(() => kernels.compile([(ops) => [ops.gatherRows(weight, indices)]])).toThrow(refusal);
    expect(() => kernels.upload(weight, new Uint8Array(18), 18)).toThrow(
      'ggml: upload of a part of q4_0 [64, 64], which was allocated for matmul',
    );
  });
});
