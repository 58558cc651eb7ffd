import { expect, it } from 'vitest';
import {
  congruence,
  type Dense,
  identity,
  multiply,
  multiplyTransposed,
  scaleCols,
  transpose,
  zeros,
} from '../../../../model/transmla/dense.ts';
import { symmetricEigen, symmetricRoot } from '../../../../model/transmla/eigen.ts';
import { random, randomDense } from './random-layer.ts';

function worst(a: Dense, b: Dense): number {
  return a.data.reduce((max, value, i) => Math.max(max, Math.abs(value - b.data[i]!)), 0);
}

function checkEigen(a: Dense): void {
  const { values, vectors } = symmetricEigen(a);
  const size = Math.max(...a.data.map(Math.abs), 1e-300);
  expect(worst(multiplyTransposed(vectors, vectors), identity(a.rows))).toBeLessThan(1e-12);
  expect(worst(multiply(scaleCols(transpose(vectors), values), vectors), a) / size).toBeLessThan(1e-12);
  values.forEach((value, i) => expect(value).toBeLessThanOrEqual(values[i - 1] ?? Infinity));
}

// On both sides of the size where the solver changes.
it.each([1, 2, 31, 32, 33, 34, 97])('vectors and values of size %i', (n) => {
  const next = random(n);
  const root = randomDense(n, n, next);
  checkEigen(multiplyTransposed(root, root));
  const mixed = zeros(n, n);
  for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) mixed.data[i * n + j] = mixed.data[j * n + i] = next();
  checkEigen(mixed);
});

it.each([20, 50])('equal, zero and widely spread values of size %i', (n) => {
  checkEigen(zeros(n, n));
  checkEigen(identity(n));
  const spread = identity(n);
  for (let i = 0; i < n; i++) spread.data[i * n + i] = i % 3 === 0 ? 0 : 10 ** (6 - (i % 13));
  checkEigen(spread);
  const { vectors } = symmetricEigen(congruence(randomDense(n, n, random(3)), identity(n)));
  checkEigen(congruence(vectors, spread));
  // One block for itself: nothing to rotate between the two.
  const blocks = zeros(n, n);
  for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) if (i < 7 === j < 7) blocks.data[i * n + j] = 1 / (1 + i + j);
  checkEigen(blocks);
});

it('signs are fixed, and the root squared is the matrix', () => {
  const next = random(4);
  const root = randomDense(40, 25, next);
  const a = multiplyTransposed(root, root);
  const { vectors } = symmetricEigen(a);
  for (let i = 0; i < 40; i++) {
    const row = vectors.data.subarray(i * 40, (i + 1) * 40);
    expect(Math.max(...row)).toBe(Math.max(...row.map(Math.abs)));
  }
  const half = symmetricRoot(a);
  expect(worst(multiply(half, half), a)).toBeLessThan(1e-7);
});

it('refuses what is not finite', () => {
  const a = identity(40);
  a.data[3] = a.data[120] = NaN;
  expect(() => symmetricEigen(a)).toThrow('not');
});
