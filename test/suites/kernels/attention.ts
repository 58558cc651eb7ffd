/** Conformance of `attend` in the layouts that worker/attention.ts uses: latent rows (MLA) and rows of heads (GQA). */
import { describe, expect } from 'vitest';
import { expectClose } from '../../helpers/expect-close.ts';
import { randomHalves } from '../../helpers/random.ts';
import { EXACT } from '../../helpers/tolerances.ts';
import type { Tensor } from '../../../worker/kernels/kernels.ts';
import { expectedAttend, expectedPermute, expectedSlice } from './expected.ts';
import type { Values } from './expected.ts';
import { causalMask, evaluate, place, placeBits, placeIndices, randomValues } from './harness.ts';
import type { KernelSuite } from './harness.ts';

export function describeAttention({ test, tolerances }: KernelSuite): void {
  describe('attend', () => {
    for (const [tokens, length, start] of [
      [1, 1, 0],
      [1, 300, 299],
      [5, 40, 11], // cache rows from 16 on are masked
      [3, 259, 256],
    ] as const) {
      test(`attend over latent rows: ${tokens} tokens, ${length} rows`, (kernels) => {
        const rows = garbageBeyond(randomValues(61, [length, 40]), start + tokens);
        const q = randomValues(62, [7, tokens, 40]);
        const mask = { shape: [tokens, length], data: causalMask(tokens, length, start) };
        const actual = evaluate(
          kernels,
          (ops) => {
            const keys = ops.reshape(place(kernels, rows), [1, length, 40]);
            const values = ops.slice(keys, 2, 0, 32);
            return ops.attend(place(kernels, q), keys, values, place(kernels, mask), { scale: 0.2, softcap: 0 });
          },
          [7, tokens, 32],
        );
        const keys = { shape: [1, length, 40], data: rows.data };
        const expected = expectedAttend(q, keys, expectedSlice(keys, 2, 0, 32), mask.data, 0.2, 0);
        expectClose(actual, expected, tolerances.attend);
      });
    }

    for (const [heads, groups] of [
      [4, 4],
      [9, 3],
      [5, 1],
    ] as const) {
      test(`attend of ${heads} heads over rows of ${groups} heads`, (kernels) => {
        const keyRows = garbageBeyond(randomValues(63, [70, groups * 16]), 38);
        const valueRows = garbageBeyond(randomValues(64, [70, groups * 24]), 38);
        const query = randomValues(65, [6, heads * 16]);
        const mask = { shape: [6, 70], data: causalMask(6, 70, 32) };
        const actual = evaluate(
          kernels,
          (ops) => {
            const split = (tensor: Tensor, count: number, rows: number, dim: number) =>
              ops.permute(ops.reshape(tensor, [rows, count, dim]), [1, 0, 2]);
            return ops.attend(
              split(place(kernels, query), heads, 6, 16),
              split(place(kernels, keyRows), groups, 70, 16),
              split(place(kernels, valueRows), groups, 70, 24),
              place(kernels, mask),
              { scale: 0.25, softcap: 0 },
            );
          },
          [heads, 6, 24],
        );
        const expected = expectedAttend(
          splitHeads(query, heads),
          splitHeads(keyRows, groups),
          splitHeads(valueRows, groups),
          mask.data,
          0.25,
          0,
        );
        expectClose(actual, expected, tolerances.attend);
      });
    }

    test('attend over an f16 cache', (kernels) => {
      const { bits, values } = randomHalves(66, 45 * 48);
      const rows = { shape: [45, 48], data: values };
      const q = randomValues(67, [6, 2, 24]);
      const mask = { shape: [2, 45], data: causalMask(2, 45, 40) };
      const actual = evaluate(
        kernels,
        (ops) => {
          const cache = placeBits(kernels, 'f16', [45, 48], bits);
          const heads = ops.permute(ops.reshape(cache, [45, 2, 24]), [1, 0, 2]); // [groups, length, dim]
          return ops.attend(place(kernels, q), heads, ops.slice(heads, 2, 0, 16), place(kernels, mask), {
            scale: 0.3,
            softcap: 0,
          });
        },
        [6, 2, 16],
      );
      const keys = splitHeads(rows, 2);
      const expected = expectedAttend(q, keys, expectedSlice(keys, 2, 0, 16), mask.data, 0.3, 0);
      expectClose(actual, expected, tolerances.attendF16);
    });

    for (const { tokens, groups } of [
      { tokens: 2, groups: 1 }, // a latent: values are the first columns of keys
      { tokens: 2, groups: 2 }, // heads side by side in a row
      { tokens: 70, groups: 2 },
    ]) {
      test(`attend over a q8_0 cache, ${tokens} tokens, ${groups} heads of keys`, (kernels) => {
        if (!kernels.supportsWeights('q8_0')) return;
        const [length, width] = [96, 64];
        const cache = kernels.allocate('q8_0', [length, groups * width], 'rows');
        const given = place(kernels, randomValues(69, [length, groups * width]));
        const all = placeIndices(kernels, [...new Array<number>(length).keys()]);
        using written = kernels.compile([(ops) => (ops.scatterRows(cache, given, all), [])]);
        written.run(0);
        const data = evaluate(kernels, (ops) => ops.gatherRows(cache, all), [length, groups * width]);
        const q = randomValues(70, [6, tokens, width]);
        const mask = { shape: [tokens, length], data: causalMask(tokens, length, length - tokens) };
        const actual = evaluate(
          kernels,
          (ops) => {
            const heads = ops.permute(ops.reshape(cache, [length, groups, width]), [1, 0, 2]); // [groups, length, width]
            const options = { scale: 0.1, softcap: 0 };
            return ops.attend(place(kernels, q), heads, ops.slice(heads, 2, 0, 32), place(kernels, mask), options);
          },
          [6, tokens, 32],
        );
        const keys = splitHeads({ shape: [length, groups * width], data }, groups);
        expectClose(
          actual,
          expectedAttend(q, keys, expectedSlice(keys, 2, 0, 32), mask.data, 0.1, 0),
          tolerances.attend,
        );
      });
    }

    for (const tokens of [1, 3, 70]) {
      test(`attend over values by column, ${tokens} tokens`, (kernels) => {
        const keys = randomValues(75, [2, 75, 16]);
        const columns = randomValues(76, [2, 32, 96]);
        const q = randomValues(77, [4, tokens, 16]);
        const mask = { shape: [tokens, 75], data: causalMask(tokens, 75, 75 - tokens) };
        const actual = evaluate(
          kernels,
          (ops) => {
            const values = ops.permute(ops.slice(place(kernels, columns), 2, 0, 75), [0, 2, 1]);
            const options = { scale: 0.4, softcap: 0 };
            return ops.attend(place(kernels, q), place(kernels, keys), values, place(kernels, mask), options);
          },
          [4, tokens, 32],
        );
        const values = expectedPermute(expectedSlice(columns, 2, 0, 75), [0, 2, 1]);
        expectClose(actual, expectedAttend(q, keys, values, mask.data, 0.4, 0), tolerances.attend);
      });
    }

    test('attend over f16 values by column', (kernels) => {
      const keys = randomHalves(78, 2 * 75 * 16);
      const columns = randomHalves(79, 2 * 32 * 75);
      const q = randomValues(80, [4, 2, 16]);
      const mask = { shape: [2, 75], data: causalMask(2, 75, 73) };
      const actual = evaluate(
        kernels,
        (ops) =>
          ops.attend(
            place(kernels, q),
            placeBits(kernels, 'f16', [2, 75, 16], keys.bits),
            ops.permute(placeBits(kernels, 'f16', [2, 32, 75], columns.bits), [0, 2, 1]),
            place(kernels, mask),
            { scale: 0.4, softcap: 0 },
          ),
        [4, 2, 32],
      );
      const values = expectedPermute({ shape: [2, 32, 75], data: columns.values }, [0, 2, 1]);
      const expected = expectedAttend(q, { shape: [2, 75, 16], data: keys.values }, values, mask.data, 0.4, 0);
      expectClose(actual, expected, tolerances.attendF16ByColumn);
    });

    for (const { tokens, softcap, byColumn } of [
      { tokens: 1, softcap: 0, byColumn: false },
      { tokens: 1, softcap: 0, byColumn: true },
      { tokens: 3, softcap: 5, byColumn: true },
      { tokens: 70, softcap: 0, byColumn: false },
    ]) {
      const order = byColumn ? 'column' : 'row';
      test(`attend with a mask for each batch of keys, ${tokens} tokens, values by ${order}`, (kernels) => {
        const slots = randomValues(81, [3, 90, 16]); // of each slot, the first 75 rows are read
        const lasting = randomValues(82, byColumn ? [3, 16, 90] : [3, 90, 16]);
        const q = randomValues(83, [6, tokens, 16]);
        const starts = [0, 75 - tokens, 2]; // of the sequences' tokens
        const masks = starts.map((start) => causalMask(tokens, 75, start));
        const mask = { shape: [3, tokens, 75], data: Float32Array.from(masks.flatMap((each) => [...each])) };
        const actual = evaluate(
          kernels,
          (ops) => {
            const keys = ops.slice(place(kernels, slots), 1, 0, 75);
            const read = ops.slice(place(kernels, lasting), byColumn ? 2 : 1, 0, 75);
            const values = byColumn ? ops.permute(read, [0, 2, 1]) : read;
            return ops.attend(place(kernels, q), keys, values, place(kernels, mask), { scale: 0.4, softcap });
          },
          [6, tokens, 16],
        );
        const values = expectedSlice(byColumn ? expectedPermute(lasting, [0, 2, 1]) : lasting, 1, 0, 75);
        const expected = masks.flatMap((each, g) => {
          const keys = expectedSlice(expectedSlice(slots, 1, 0, 75), 0, g, 1);
          return expectedAttend(
            expectedSlice(q, 0, 2 * g, 2),
            keys,
            expectedSlice(values, 0, g, 1),
            each,
            0.4,
            softcap,
          );
        });
        expectClose(actual, expected, tolerances.attend);
      });
    }

    test('attend caps the scaled scores before the mask', (kernels) => {
      const keys = randomValues(68, [1, 33, 8], -3, 3);
      const values = randomValues(69, [1, 33, 5]);
      const q = randomValues(70, [3, 2, 8], -3, 3);
      const mask = { shape: [2, 33], data: causalMask(2, 33, 20) };
      const actual = evaluate(
        kernels,
        (ops) =>
          ops.attend(place(kernels, q), place(kernels, keys), place(kernels, values), place(kernels, mask), {
            scale: 1.5,
            softcap: 10,
          }),
        [3, 2, 5],
      );
      expectClose(actual, expectedAttend(q, keys, values, mask.data, 1.5, 10), tolerances.attend);
    });

    test('attend of a fully masked token is zero', (kernels) => {
      const keys = randomValues(71, [1, 6, 8]);
      const q = randomValues(72, [2, 2, 8]);
      const mask = { shape: [2, 6], data: Float32Array.from({ length: 12 }, (_, i) => (i < 6 ? -Infinity : 0)) };
      const actual = evaluate(
        kernels,
        (ops) => {
          const cache = place(kernels, keys);
          return ops.attend(place(kernels, q), cache, cache, place(kernels, mask), { scale: 1, softcap: 0 });
        },
        [2, 2, 8],
      );
      expect([...actual.subarray(0, 8)]).toEqual([0, 0, 0, 0, 0, 0, 0, 0]);
      expectClose(actual, expectedAttend(q, keys, keys, mask.data, 1, 0), tolerances.attend);
    });

    test('attend of no heads', (kernels) => {
      const q = kernels.allocate('f32', [0, 2, 8]);
      const cache = kernels.allocate('f32', [1, 6, 8]);
      const mask = kernels.allocate('f32', [2, 6]);
      const options = { scale: 1, softcap: 0 };
      expectClose(
        evaluate(kernels, (ops) => ops.attend(q, cache, cache, mask, options), [0, 2, 8]),
        [],
        EXACT,
      );
    });
  });
}

/** Rows that no token may see hold large numbers: whatever reads past the mask is off by far. */
function garbageBeyond(rows: Values & { data: Float32Array }, used: number): Values & { data: Float32Array } {
  const columns = rows.shape[1]!;
  rows.data.forEach((value, index) => {
    if (index >= used * columns) rows.data[index] = value * 1e4;
  });
  return rows;
}

/** [rows, heads * dim] -> [heads, rows, dim] */
function splitHeads(rows: Values, heads: number): Values {
  const [count = 0, columns = 0] = rows.shape;
  return expectedPermute({ shape: [count, heads, columns / heads], data: rows.data }, [1, 0, 2]);
}
