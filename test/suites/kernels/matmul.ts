/** Conformance of `matmul`: sizes around blocks and vectors, batches, half weights, views, empty axes. */
import { describe } from 'vitest';
import { expectClose } from '../../helpers/expect-close.ts';
import { randomBrainFloats, randomHalves } from '../../helpers/random.ts';
import { EXACT } from '../../helpers/tolerances.ts';
import { expectedMatmul, expectedPermute, expectedSlice } from './expected.ts';
import type { Values } from './expected.ts';
import { evaluate, place, placeBits, randomValues } from './harness.ts';
import type { KernelSuite } from './harness.ts';

const SIZES = [
  { tokens: 1, rows: 1, columns: 1 },
  { tokens: 2, rows: 5, columns: 3 },
  { tokens: 7, rows: 33, columns: 65 },
  { tokens: 1, rows: 257, columns: 96 },
  { tokens: 3, rows: 70, columns: 259 },
  { tokens: 32, rows: 64, columns: 576 },
];

export function describeMatmul({ test, tolerances }: KernelSuite): void {
  describe('matmul', () => {
    for (const { tokens, rows, columns } of SIZES) {
      test(`matmul [${rows}, ${columns}] times ${tokens} tokens`, (kernels) => {
        const weight = randomValues(1, [rows, columns]);
        const x = randomValues(2, [tokens, columns]);
        const actual = evaluate(kernels, (ops) => ops.matmul(place(kernels, weight), place(kernels, x)), [
          tokens,
          rows,
        ]);
        expectClose(actual, expectedMatmul(batched(weight), batched(x)), tolerances.matmul);
      });
    }

    for (const [groups, batches] of [
      [1, 5],
      [3, 3],
      [3, 9],
    ] as const) {
      test(`matmul of ${batches} batches over ${groups} weights`, (kernels) => {
        const weight = randomValues(3, [groups, 6, 35]);
        const x = randomValues(4, [batches, 3, 35]);
        const actual = evaluate(kernels, (ops) => ops.matmul(place(kernels, weight), place(kernels, x)), [
          batches,
          3,
          6,
        ]);
        expectClose(actual, expectedMatmul(weight, x), tolerances.matmul);
      });
    }

    for (const type of ['f16', 'bf16'] as const) {
      test(`matmul with ${type} weights`, (kernels) => {
        if (!kernels.supportsWeights(type)) return;
        const shape = [1, 37, 160];
        const { bits, values } = type === 'f16' ? randomHalves(5, 37 * 160) : randomBrainFloats(5, 37 * 160);
        const x = randomValues(6, [3, 160]);
        const weight = placeBits(kernels, type, [37, 160], bits);
        const actual = evaluate(kernels, (ops) => ops.matmul(weight, place(kernels, x)), [3, 37]);
        const tolerance = type === 'f16' ? tolerances.matmulF16 : tolerances.matmulBf16;
        expectClose(actual, expectedMatmul({ shape, data: values }, batched(x)), tolerance);
      });
    }

    test('matmul with a slice of rows and a slice of columns as weight', (kernels) => {
      const weight = randomValues(7, [40, 72]);
      const x = randomValues(8, [2, 33]);
      const actual = evaluate(
        kernels,
        (ops) => ops.matmul(ops.slice(ops.slice(place(kernels, weight), 0, 5, 17), 1, 8, 33), place(kernels, x)),
        [2, 17],
      );
      const cut = expectedSlice(expectedSlice(weight, 0, 5, 17), 1, 8, 33);
      expectClose(actual, expectedMatmul(batched(cut), batched(x)), tolerances.matmul);
    });

    test('matmul with a permuted weight and a permuted x', (kernels) => {
      const weight = randomValues(9, [7, 3, 34]); // [rows, groups, columns]
      const x = randomValues(10, [5, 6, 34]); // [tokens, heads, columns]
      const actual = evaluate(
        kernels,
        (ops) => ops.matmul(ops.permute(place(kernels, weight), [1, 0, 2]), ops.permute(place(kernels, x), [1, 0, 2])),
        [6, 5, 7],
      );
      const expected = expectedMatmul(expectedPermute(weight, [1, 0, 2]), expectedPermute(x, [1, 0, 2]));
      expectClose(actual, expected, tolerances.matmul);
    });

    test('matmul with the result of an earlier operation as weight', (kernels) => {
      const weight = randomValues(11, [9, 35]);
      const x = randomValues(12, [4, 35]);
      const actual = evaluate(
        kernels,
        (ops) => ops.matmul(ops.scale(place(kernels, weight), 2), ops.scale(place(kernels, x), 0.5)),
        [4, 9],
      );
      expectClose(actual, expectedMatmul(batched(weight), batched(x)), tolerances.matmul);
    });

    test('matmul without rows, without tokens, without batches', (kernels) => {
      const x = place(kernels, randomValues(13, [2, 5]));
      const weight = place(kernels, randomValues(14, [3, 5]));
      const noRows = kernels.allocate('f32', [0, 5]);
      const noBatches = kernels.allocate('f32', [0, 4, 5]);
      expectClose(
        evaluate(kernels, (ops) => ops.matmul(noRows, x), [2, 0]),
        [],
        EXACT,
      );
      expectClose(
        evaluate(kernels, (ops) => ops.matmul(weight, noRows), [0, 3]),
        [],
        EXACT,
      );
      expectClose(
        evaluate(kernels, (ops) => ops.matmul(noBatches, noBatches), [0, 4, 4]),
        [],
        EXACT,
      );
    });

    test('matmul over zero columns is zero', (kernels) => {
      const weight = kernels.allocate('f32', [3, 0]);
      const x = kernels.allocate('f32', [2, 0]);
      expectClose(
        evaluate(kernels, (ops) => ops.matmul(weight, x), [2, 3]),
        [0, 0, 0, 0, 0, 0],
        EXACT,
      );
    });
  });
}

function batched(values: Values): Values {
  return { shape: [1, ...values.shape], data: values.data };
}
