/** Conformance of `expertMatmul` and `weightedSum`: one or several rows of x per token, repeated experts, half weights. */
import { describe } from 'vitest';
import { expectClose } from '../../helpers/expect-close.ts';
import { randomHalves } from '../../helpers/random.ts';
import { EXACT } from '../../helpers/tolerances.ts';
import type { Values } from './expected.ts';
import { bytesOf, evaluate, place, placeBits, randomValues } from './harness.ts';
import type { KernelSuite } from './harness.ts';
import type { Kernels, Tensor } from '../../../worker/kernels/kernels.ts';

const CASES = [
  { experts: 1, tokens: 1, slots: 1, rows: 1, columns: 1 },
  { experts: 5, tokens: 1, slots: 3, rows: 7, columns: 33 },
  { experts: 4, tokens: 6, slots: 2, rows: 34, columns: 64 },
  { experts: 9, tokens: 70, slots: 4, rows: 12, columns: 40 },
];

export function describeExperts({ test, tolerances }: KernelSuite): void {
  describe('experts', () => {
    for (const { experts, tokens, slots, rows, columns } of CASES) {
      const weights = randomValues(1, [experts, rows, columns]);
      const ids = Array.from({ length: tokens * slots }, (_, i) => (i * 7 + Math.floor(i / 3)) % experts);
      for (const xRows of slots === 1 ? [1] : [1, slots]) {
        test(`expertMatmul of ${tokens} tokens, ${slots} of ${experts} experts, ${xRows} rows each`, (kernels) => {
          const x = randomValues(2, [tokens, xRows, columns]);
          const chosen = placeIds(kernels, [tokens, slots], ids);
          const actual = evaluate(
            kernels,
            (ops) => ops.expertMatmul(place(kernels, weights), place(kernels, x), chosen),
            [tokens, slots, rows],
          );
          expectClose(actual, expectedExpertMatmul(weights, x, ids, slots), tolerances.matmul);
        });
      }
    }

    test('expertMatmul with f16 weights', (kernels) => {
      if (!kernels.supportsWeights('f16')) return;
      const { bits, values } = randomHalves(3, 3 * 5 * 32);
      const x = randomValues(4, [2, 1, 32]);
      const ids = [2, 0, 1, 1];
      const actual = evaluate(
        kernels,
        (ops) =>
          ops.expertMatmul(
            placeBits(kernels, 'f16', [3, 5, 32], bits),
            place(kernels, x),
            placeIds(kernels, [2, 2], ids),
          ),
        [2, 2, 5],
      );
      const expected = expectedExpertMatmul({ shape: [3, 5, 32], data: values }, x, ids, 2);
      expectClose(actual, expected, tolerances.matmulF16);
    });

    for (const [tokens, slots, columns] of [
      [1, 1, 5],
      [3, 4, 33],
      [40, 8, 6],
    ] as const) {
      test(`weightedSum of ${tokens} tokens, ${slots} slots, ${columns} columns`, (kernels) => {
        const x = randomValues(5, [tokens, slots, columns]);
        const shares = randomValues(6, [tokens, slots]);
        const actual = evaluate(kernels, (ops) => ops.weightedSum(place(kernels, x), place(kernels, shares)), [
          tokens,
          columns,
        ]);
        expectClose(actual, expectedWeightedSum(x, shares), tolerances.matmul);
      });
    }

    test('experts without rows give nothing', (kernels) => {
      const weights = kernels.allocate('f32', [3, 0, 4]);
      const ids = placeIds(kernels, [2, 1], [2, 0]);
      const x = place(kernels, randomValues(7, [2, 1, 4]));
      expectClose(
        evaluate(kernels, (ops) => ops.expertMatmul(weights, x, ids), [2, 1, 0]),
        [],
        EXACT,
      );
    });
  });
}

function placeIds(kernels: Kernels, shape: readonly number[], ids: readonly number[]): Tensor {
  const tensor = kernels.allocate('i32', shape);
  kernels.upload(tensor, bytesOf(Int32Array.from(ids)));
  return tensor;
}

function expectedExpertMatmul(weights: Values, x: Values, ids: readonly number[], slots: number): number[] {
  const [, rows = 0, columns = 0] = weights.shape;
  const xRows = x.shape[1]!;
  return ids.flatMap((expert, i) => {
    const row = Math.floor(i / slots) * xRows + (xRows === 1 ? 0 : i % slots);
    return Array.from({ length: rows }, (_, m) => {
      let sum = 0;
      for (let k = 0; k < columns; k++)
        sum += weights.data[(expert * rows + m) * columns + k]! * x.data[row * columns + k]!;
      return sum;
    });
  });
}

function expectedWeightedSum(x: Values, shares: Values): number[] {
  const [tokens = 0, slots = 0, columns = 0] = x.shape;
  return Array.from({ length: tokens * columns }, (_, i) => {
    const t = Math.floor(i / columns);
    let sum = 0;
    for (let j = 0; j < slots; j++)
      sum += shares.data[t * slots + j]! * x.data[(t * slots + j) * columns + (i % columns)]!;
    return sum;
  });
}
