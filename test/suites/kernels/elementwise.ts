/** Conformance of the operations that work element by element or row by row of a mask. */
import { describe, expect } from 'vitest';
import { expectClose } from '../../helpers/expect-close.ts';
import { EXACT } from '../../helpers/tolerances.ts';
import { expectedSoftmax } from './expected.ts';
import { causalMask, evaluate, place, randomValues, size } from './harness.ts';
import type { KernelSuite } from './harness.ts';

const SHAPES = [[1], [3, 5], [2, 33], [7, 3, 35], [1, 300]];

export function describeElementwise({ test, tolerances }: KernelSuite): void {
  describe('elementwise', () => {
    for (const operation of ['add', 'multiply'] as const) {
      test(`${operation} of equal shapes and of trailing axes`, (kernels) => {
        for (const shape of SHAPES) {
          for (let dropped = 0; dropped < shape.length; dropped++) {
            const a = randomValues(21, shape);
            const b = randomValues(22, shape.slice(dropped));
            const actual = evaluate(kernels, (ops) => ops[operation](place(kernels, a), place(kernels, b)), shape);
            const expected = Array.from(a.data, (left, index) => {
              const right = b.data[index % size(b.shape)]!;
              return operation === 'add' ? left + right : left * right;
            });
            expectClose(actual, expected, tolerances.elementwise);
          }
        }
      });
    }

    test('scale and softcap', (kernels) => {
      for (const shape of SHAPES) {
        const x = randomValues(23, shape, -90, 90);
        const scaled = evaluate(kernels, (ops) => ops.scale(place(kernels, x), -0.375), shape);
        expectClose(
          scaled,
          Array.from(x.data, (value) => value * -0.375),
          tolerances.elementwise,
        );
        const softcapped = evaluate(kernels, (ops) => ops.softcap(place(kernels, x), 30), shape);
        expectClose(
          softcapped,
          Array.from(x.data, (value) => 30 * Math.tanh(value / 30)),
          tolerances.softcap,
        );
      }
    });

    for (const activation of ['silu', 'gelu-tanh'] as const) {
      test(`gated by ${activation}`, (kernels) => {
        for (const range of [3, 60]) {
          const gate = randomValues(24, [3, 131], -range, range);
          const up = randomValues(25, [3, 131]);
          const actual = evaluate(
            kernels,
            (ops) => ops.gated(place(kernels, gate), place(kernels, up), activation),
            [3, 131],
          );
          const activate = activation === 'silu' ? silu : geluTanh;
          const tolerance = activation === 'silu' ? tolerances.elementwise : tolerances.gelu;
          expectClose(
            actual,
            Array.from(gate.data, (value, i) => activate(value) * up.data[i]!),
            tolerance,
          );
        }
      });
    }

    test('softmax under a causal mask', (kernels) => {
      for (const [heads, tokens, length] of [
        [1, 1, 1],
        [3, 4, 7],
        [2, 3, 300],
      ] as const) {
        const x = randomValues(26, [heads, tokens, length], -8, 8);
        const mask = causalMask(tokens, length, length - tokens);
        const actual = evaluate(
          kernels,
          (ops) => ops.softmax(place(kernels, x), place(kernels, { shape: [tokens, length], data: mask }), 0.7),
          x.shape,
        );
        expectClose(actual, expectedSoftmax(x, mask, 0.7), tolerances.softmax);
      }
    });

    test('softmax of a fully masked row is zero', (kernels) => {
      const x = randomValues(27, [2, 2, 5]);
      const mask = Float32Array.from({ length: 10 }, (_, index) => (index < 5 ? -Infinity : 0));
      const actual = evaluate(
        kernels,
        (ops) => ops.softmax(place(kernels, x), place(kernels, { shape: [2, 5], data: mask }), 1),
        x.shape,
      );
      expect([...actual.subarray(0, 5)]).toEqual([0, 0, 0, 0, 0]);
      expectClose(actual, expectedSoftmax(x, mask, 1), tolerances.softmax);
    });

    test('elementwise operations on empty tensors', (kernels) => {
      const empty = kernels.allocate('f32', [0, 4]);
      expectClose(
        evaluate(kernels, (ops) => ops.add(ops.scale(empty, 2), empty), [0, 4]),
        [],
        EXACT,
      );
      expectClose(
        evaluate(kernels, (ops) => ops.gated(empty, empty, 'silu'), [0, 4]),
        [],
        EXACT,
      );
    });
  });
}

function silu(x: number): number {
  return x / (1 + Math.exp(-x));
}

function geluTanh(x: number): number {
  return (x / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}
