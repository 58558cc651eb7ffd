/** Ridge regression: exact maps are found, the pull leads to the prior, the minimum is one. */
import { expect, test } from 'vitest';
import { denseFrom, multiplyTransposed, zeros } from '../../../../model/transmla/dense.ts';
import { ridge } from '../../../../model/tpla/ridge.ts';
import { randomArray } from '../../../helpers/random.ts';

const dense = (seed: number, rows: number, cols: number) =>
  denseFrom(rows, cols, randomArray(seed, rows * cols, -1, 1));

const features = dense(1, 5, 40); // [features, samples]
const map = dense(2, 3, 5);
const prior = dense(3, 3, 5);

function loss(w: ReturnType<typeof dense>, targets: ReturnType<typeof dense>, weight: number): number {
  let sum = 0;
  for (let i = 0; i < 3; i++) {
    for (let t = 0; t < 40; t++) {
      let value = 0;
      for (let j = 0; j < 5; j++) value += w.data[i * 5 + j]! * features.data[j * 40 + t]!;
      sum += (targets.data[i * 40 + t]! - value) ** 2;
    }
    for (let j = 0; j < 5; j++) sum += weight * (w.data[i * 5 + j]! - prior.data[i * 5 + j]!) ** 2;
  }
  return sum;
}

test('finds the map that made the targets', () => {
  const gram = multiplyTransposed(features, features);
  const cross = multiplyTransposed(map, gram);
  const found = ridge(gram, cross, prior, 0);
  found.data.forEach((value, i) => expect(value).toBeCloseTo(map.data[i]!, 6));
});

test('a strong pull gives the prior, a middle one the minimum', () => {
  const gram = multiplyTransposed(features, features);
  const targets = dense(4, 3, 40);
  const cross = multiplyTransposed(targets, features);
  ridge(gram, cross, prior, 1e9).data.forEach((value, i) => expect(value).toBeCloseTo(prior.data[i]!, 5));
  const found = ridge(gram, cross, prior, 0.3);
  let trace = 0;
  for (let i = 0; i < 5; i++) trace += gram.data[i * 6]!;
  const weight = (0.3 * trace) / 5;
  const best = loss(found, targets, weight);
  for (let i = 0; i < 15; i++)
    for (const step of [-1e-3, 1e-3]) {
      const other = zeros(3, 5);
      other.data.set(found.data);
      other.data[i]! += step;
      expect(loss(other, targets, weight)).toBeGreaterThan(best);
    }
});
