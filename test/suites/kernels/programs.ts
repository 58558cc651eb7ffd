/** Conformance of programs: order of steps, shared scratch memory, repeated runs, releasing. */
import { describe, expect } from 'vitest';
import { expectClose } from '../../helpers/expect-close.ts';
import { EXACT } from '../../helpers/tolerances.ts';
import { expectedAttend, expectedMatmul, expectedSlice } from './expected.ts';
import { causalMask, place, placeIndices, randomValues, read, replace } from './harness.ts';
import type { KernelSuite } from './harness.ts';

export function describePrograms({ test, tolerances }: KernelSuite): void {
  describe('programs', () => {
    test('attend sees the rows that the same program scattered, run after run', (kernels) => {
      const [length, columns] = [37, 12];
      const cache = kernels.allocate('f32', [length, columns]);
      const row = kernels.allocate('f32', [1, columns]);
      const index = placeIndices(kernels, [0]);
      const q = randomValues(81, [3, 1, columns]);
      const mask = kernels.allocate('f32', [1, length]);
      using programs = kernels.compile([
        (ops) => {
          ops.scatterRows(cache, row, index);
          const keys = ops.reshape(cache, [1, length, columns]);
          return [ops.attend(place(kernels, q), keys, ops.slice(keys, 2, 0, 8), mask, { scale: 0.5, softcap: 0 })];
        },
      ]);
      const held = new Float32Array(length * columns);
      for (let position = 0; position < 5; position++) {
        const values = randomValues(82 + position, [columns]);
        held.set(values.data, position * columns);
        replace(kernels, row, values.data);
        kernels.upload(index, new Uint8Array(Int32Array.of(position).buffer));
        const visible = causalMask(1, length, position);
        replace(kernels, mask, visible);
        programs.run(0);
        const keys = { shape: [1, length, columns], data: held };
        const expected = expectedAttend(q, keys, expectedSlice(keys, 2, 0, 8), visible, 0.5, 0);
        expectClose(read(kernels, programs.outputs[0]![0]!), expected, tolerances.attend);
      }
    });

    test('programs of one set share weights and memory, and what is copied out survives', (kernels) => {
      const weight = place(kernels, randomValues(91, [20, 33]));
      const shapes = [1, 7, 3].map((tokens) => [tokens, 33]);
      const inputs = shapes.map((shape, i) => randomValues(92 + i, shape));
      const kept = kernels.allocate('f32', [1, 20]);
      const placed = inputs.map((input) => place(kernels, input));
      using programs = kernels.compile(
        placed.map((x, i) => (ops) => {
          const product = ops.matmul(weight, ops.scale(x, 2));
          if (i === 0) ops.copyTo(kept, product);
          return [product, ops.scale(product, -1)];
        }),
      );
      const expected = inputs.map(({ data, shape }) =>
        expectedMatmul(
          { shape: [1, 20, 33], data: randomValues(91, [20, 33]).data },
          { shape: [1, ...shape], data: data.map((value) => value * 2) },
        ),
      );
      for (const index of [0, 1, 2, 1, 0, 2, 1]) {
        programs.run(index);
        const [product, negated] = programs.outputs[index]!;
        expectClose(read(kernels, product!), expected[index]!, tolerances.matmul);
        expectClose(
          read(kernels, negated!),
          expected[index]!.map((value) => -value),
          tolerances.matmul,
        );
      }
      expectClose(read(kernels, kept), expected[0]!, tolerances.matmul);
    });

    test('an upload between runs changes inputs and weights', (kernels) => {
      const weight = place(kernels, randomValues(101, [6, 17]));
      const x = place(kernels, randomValues(102, [2, 17]));
      using programs = kernels.compile([(ops) => [ops.matmul(weight, x)]]);
      for (const seed of [103, 104, 105]) {
        const nextWeight = randomValues(seed, [6, 17]);
        const nextX = randomValues(seed + 10, [2, 17]);
        replace(kernels, weight, nextWeight.data);
        replace(kernels, x, nextX.data);
        programs.run(0);
        const expected = expectedMatmul(
          { shape: [1, 6, 17], data: nextWeight.data },
          { shape: [1, 2, 17], data: nextX.data },
        );
        expectClose(read(kernels, programs.outputs[0]![0]!), expected, tolerances.matmul);
      }
    });

    test('a program reads what another one copied into an allocated tensor', (kernels) => {
      const source = place(kernels, randomValues(111, [5, 9]));
      const state = kernels.allocate('f32', [5, 9]);
      using programs = kernels.compile([
        (ops) => {
          ops.copyTo(state, ops.add(state, source));
          return [];
        },
        (ops) => [ops.matmul(state, source)],
      ]);
      programs.run(0);
      programs.run(0);
      programs.run(1);
      const values = randomValues(111, [5, 9]);
      const doubled = { shape: [1, 5, 9], data: values.data.map((value) => value * 2) };
      const expected = expectedMatmul(doubled, { shape: [1, 5, 9], data: values.data });
      expectClose(read(kernels, state), doubled.data, EXACT);
      expectClose(read(kernels, programs.outputs[1]![0]!), expected, tolerances.matmul);
    });

    test('allocate gives zeros, release gives memory back', (kernels) => {
      for (let i = 0; i < 3; i++) {
        const tensor = kernels.allocate('f32', [3, 5]);
        expectClose(read(kernels, tensor), new Float32Array(15), EXACT);
        replace(kernels, tensor, randomValues(121, [15]).data);
        kernels.release([tensor]);
      }
      expect(kernels.allocate('i32', [0]).shape).toEqual([0]);
    });

    test('memory that fills row by row is zeros too, over many pages and after it held other numbers', (kernels) => {
      const shape = [3001, 53]; // neither its start nor its end falls on a page
      for (let i = 0; i < 2; i++) {
        const tensor = kernels.allocate('f32', shape, 'rows');
        expect(read(kernels, tensor).every((value) => value === 0)).toBe(true);
        replace(kernels, tensor, randomValues(122 + i, shape).data);
        kernels.release([tensor]);
      }
    });

    test('shapes that do not fit are refused when the program is recorded', (kernels) => {
      const a = kernels.allocate('f32', [2, 3]);
      const b = kernels.allocate('f32', [2, 4]);
      expect(() => kernels.compile([(ops) => [ops.matmul(a, b)]])).toThrow(/matmul.*\[2, 3\].*\[2, 4\]/);
      expect(() => kernels.compile([(ops) => [ops.add(a, b)]])).toThrow(/add.*\[2, 4\]/);
      expect(() => kernels.compile([(ops) => [ops.reshape(a, [7])]])).toThrow(/reshape.*\[2, 3\].*\[7\]/);
    });
  });
}
