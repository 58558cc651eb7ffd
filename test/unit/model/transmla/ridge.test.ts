/** Ridge regression: exact maps are found, the pull leads to the prior, the minimum is one. */
import { expect, test } from 'vitest';
import { denseFrom, multiplyTransposed, zeros } from '../../../../model/transmla/dense.ts';
import { ridge } from '../../../../model/transmla/ridge.ts';
import { randomArray } from '../../../helpers/random.ts';

const dense = (seed: number, rows: number, cols: number) =>
  denseFrom(rows, cols, randomArray(seed, rows * cols, -1, 1));

const features = dense(1, 5, 40); // [features, samples]
const map = dense(2, 3, 5);
const prior = dense(3, 3, 5);

function loss(w: ReturnType<typeof dense>, targets: ReturnType<typeof dense>, weights: readonly number[]): number {
  let sum = 0;
  for (let i = 0; i < 3; i++) {
    for (let t = 0; t < 40; t++) {
      let value = 0;
      for (let j = 0; j < 5; j++) value += w.data[i * 5 + j]! * features.data[j * 40 + t]!;
      sum += (targets.data[i * 40 + t]! - value) ** 2;
    }
    for (let j = 0; j < 5; j++) sum += weights[j]! * (w.data[i * 5 + j]! - prior.data[i * 5 + j]!) ** 2;
  }
  return sum;
}

test('finds the map that made the targets', () => {
  const gram = multiplyTransposed(features, features);
  const cross = multiplyTransposed(map, gram);
  const found = ridge(gram, cross, prior, { strength: 0, energy: 'own' }).map;
  found.data.forEach((value, i) => expect(value).toBeCloseTo(map.data[i]!, 6));
});

test.each(['own', 'mean'] as const)('a strong pull gives the prior, a middle one the minimum: %s energy', (energy) => {
  const gram = multiplyTransposed(features, features);
  const targets = dense(4, 3, 40);
  const cross = multiplyTransposed(targets, features);
  ridge(gram, cross, prior, { strength: 1e9, energy: 'own' }).map.data.forEach((value, i) =>
    expect(value).toBeCloseTo(prior.data[i]!, 5),
  );
  const energies = Array.from({ length: 5 }, (_, i) => gram.data[i * 6]!);
  const mean = energies.reduce((a, b) => a + b) / 5;
  const { map: found, saved } = ridge(gram, cross, prior, { strength: 0.3, energy });
  const weights = energies.map((own) => 0.3 * (energy === 'own' ? own : mean));
  const best = loss(found, targets, weights);
  const ofTargets = targets.data.reduce((sum, value) => sum + value * value, 0);
  expect(ofTargets + saved).toBeCloseTo(loss(found, targets, [0, 0, 0, 0, 0]), 2);
  for (let i = 0; i < 15; i++)
    for (const step of [-1e-3, 1e-3]) {
      const other = zeros(3, 5);
      other.data.set(found.data);
      other.data[i]! += step;
      expect(loss(other, targets, weights)).toBeGreaterThan(best);
    }
});

test('a weak feature is fitted as well as a strong one', () => {
  const scales = [4, 2, 1, 0.5, 0.25];
  const scaled = denseFrom(
    5,
    40,
    features.data.map((value, i) => value * scales[Math.floor(i / 40)]!),
  );
  const nothing = zeros(3, 5);
  const plain = ridge(
    multiplyTransposed(features, features),
    multiplyTransposed(map, multiplyTransposed(features, features)),
    nothing,
    { strength: 0.1, energy: 'own' },
  ).map;
  const gram = multiplyTransposed(scaled, scaled);
  const targets = multiplyTransposed(map, multiplyTransposed(scaled, features));
  const found = ridge(gram, targets, nothing, { strength: 0.1, energy: 'own' }).map;
  found.data.forEach((value, i) => expect(value * scales[i % 5]!).toBeCloseTo(plain.data[i]!, 2));
});
