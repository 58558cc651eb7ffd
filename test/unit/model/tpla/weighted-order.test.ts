/** The order of latent columns that loses least when it is cut. */
import { expect, test } from 'vitest';
import { weightedOrder } from '../../../../model/tpla/weighted-order.ts';
import {
  congruence,
  denseFrom,
  diagonal,
  identity,
  multiply,
  multiplyTransposed,
  rowsOf,
  transpose,
  zeros,
  type Dense,
} from '../../../../model/transmla/dense.ts';
import { symmetricEigen } from '../../../../model/transmla/eigen.ts';
import { seededRandom } from '../../../helpers/random.ts';

const r = 12;
const next = seededRandom(7);

/** Second moment of vectors that are long in some directions. */
function moment(): Dense {
  const vectors = denseFrom(
    3 * r,
    r,
    Array.from({ length: 3 * r * r }, (_, i) => (next() - 0.5) * 1.5 ** -(i % r)),
  );
  return multiplyTransposed(transpose(vectors), transpose(vectors));
}

/** tr(metric (C - C F^T (F C F^T)^-1 F C)): what the best linear guess of the latent from F c misses. */
function missed(metric: Dense, covariance: Dense, kept: Dense): number {
  const known = multiply(kept, covariance); // [k, r]
  const { values, vectors } = symmetricEigen(congruence(kept, covariance));
  const white = multiply(vectors, known); // rows by eigenvector
  let sum = diagonal(multiply(metric, covariance)).reduce((a, b) => a + b, 0);
  const explained = diagonal(congruence(white, metric));
  explained.forEach((value, i) => (sum -= value / (values[i] ?? 1)));
  return sum;
}

const covariance = moment();
const scores = moment();
const values = moment();

test('is orthogonal', () => {
  const order = weightedOrder({ covariance, scores, values }, 4);
  const product = multiplyTransposed(order, order);
  identity(r).data.forEach((expected, i) => expect(product.data[i]).toBeCloseTo(expected, 10));
});

test('with equal metrics it spans what the principal axes span', () => {
  const order = weightedOrder({ covariance, scores: identity(r), values: zeros(r, r) }, 0);
  const energies = diagonal(congruence(order, covariance));
  symmetricEigen(covariance).values.forEach((value, i) => expect(energies[i]! / value).toBeCloseTo(1, 3));
});

test.each([1, 3, 5])('no other %i shared columns leave less of the scores unknown', (shared) => {
  const chosen = missed(scores, covariance, rowsOf(weightedOrder({ covariance, scores, values }, shared), 0, shared));
  expect(chosen).toBeGreaterThan(0);
  const rivals = [
    rowsOf(symmetricEigen(covariance).vectors, 0, shared),
    rowsOf(symmetricEigen(scores).vectors, 0, shared),
  ];
  for (let i = 0; i < 20; i++)
    rivals.push(
      denseFrom(
        shared,
        r,
        Array.from({ length: shared * r }, () => next() - 0.5),
      ),
    );
  for (const rival of rivals) expect(missed(scores, covariance, rival)).toBeGreaterThanOrEqual(chosen * (1 - 1e-6));
});

test('a latent that never varies in some direction has an order too', () => {
  const flat = denseFrom(3, 3, [2, 0, 0, 0, 1, 0, 0, 0, 0]);
  const order = weightedOrder({ covariance: flat, scores: identity(3), values: identity(3) }, 1);
  expect(Math.abs(order.data[0] ?? 0)).toBeCloseTo(1);
  expect(Math.abs(order.data[8] ?? 0)).toBeCloseTo(1);
});
