import { describe, expect, it } from 'vitest';
import { solveRows } from '../../../../model/transmla/cholesky.ts';
import {
  added,
  colsOf,
  type Dense,
  multiply,
  multiplyTransposed,
  stackRows,
  zeros,
} from '../../../../model/transmla/dense.ts';
import { refitOutput, refitValues, withHeadBias } from '../../../../model/transmla/refit.ts';
import { random, randomDense } from './random-layer.ts';

const layout = { numHeads: 4, numKvHeads: 2, headDim: 6 };
const [latentDim, tokens, hiddenDim] = [5, 400, 11];

function withOnes(x: Dense): Dense {
  const ones = zeros(1, x.cols);
  ones.data.fill(1);
  return stackRows([x, ones]);
}

function worst(a: Dense, b: Dense): number {
  return a.data.reduce((max, value, i) => Math.max(max, Math.abs(value - b.data[i]!)), 0);
}

// On both sides of a panel's width and with rows that fill no tile.
it.each([
  [9, 3],
  [32, 4],
  [33, 5],
  [70, 11],
])('solves rows of %i with %i sides', (n, rows) => {
  const next = random(1);
  const root = randomDense(n, n + 3, next);
  const a = multiplyTransposed(root, root);
  const x = randomDense(rows, n, next);
  expect(worst(solveRows(a, multiply(x, a)), x)).toBeLessThan(1e-7);
  expect(() => solveRows({ ...a, data: a.data.map((value) => -value) }, x)).toThrow(
    `not positive definite at row 0 of ${n}`,
  );
});

describe('W_UV', () => {
  const next = random(2);
  const heads = Array.from({ length: layout.numHeads }, () => {
    const features = withOnes(randomDense(latentDim, tokens, next)); // [r + 1, T]
    const truth = randomDense(layout.headDim, latentDim + 1, next);
    return { features, truth, outputs: multiply(truth, features) };
  });
  const flat = (parts: Dense[]): Float64Array => stackRows(parts).data;
  const equations = {
    features: flat(heads.map(({ features }) => multiplyTransposed(features, features))),
    targets: flat(heads.map(({ features, outputs }) => multiplyTransposed(outputs, features))),
    energy: Float64Array.from(heads, ({ outputs }) => outputs.data.reduce((sum, value) => sum + value * value, 0)),
  };
  const prior = randomDense(layout.numHeads * layout.headDim, latentDim, next);
  const mean = randomDense(layout.numKvHeads * layout.headDim, 1, next);

  it('is found where the features explain the outputs', () => {
    const fitted = refitValues(equations, prior, mean, layout, 1e-9);
    const truth = stackRows(heads.map((head) => head.truth));
    expect(worst(fitted.valueUp, colsOf(truth, 0, latentDim))).toBeLessThan(1e-6);
    expect(worst(fitted.bias, colsOf(truth, latentDim, latentDim + 1))).toBeLessThan(1e-6);
    expect(fitted.missedBefore).toBeGreaterThan(0.5);
    expect(fitted.missedAfter).toBeLessThan(1e-9);
  });

  it('stays at the prior where the ridge is strong, or nothing was seen', () => {
    const strong = refitValues(equations, prior, mean, layout, 1e9);
    expect(worst(strong.valueUp, prior)).toBeLessThan(1e-6);
    const nothing = {
      features: equations.features.map(() => 0),
      targets: equations.targets.map(() => 0),
      energy: new Float64Array(layout.numHeads),
    };
    expect(refitValues(nothing, prior, mean, layout).valueUp).toEqual(prior);
  });
});

it('W_O makes up for heads that differ by a linear map', () => {
  const next = random(3);
  const width = layout.numHeads * layout.headDim;
  const heads = randomDense(width, tokens, next);
  const mix = randomDense(width, width, next);
  const output = randomDense(hiddenDim, width + 1, next);
  const features = withOnes(heads);
  const targets = multiply(output, withOnes(multiply(mix, heads))); // [D, T]
  const equations = {
    features: multiplyTransposed(features, features).data,
    targets: multiplyTransposed(targets, features).data,
    energy: Float64Array.of(targets.data.reduce((sum, value) => sum + value * value, 0)),
  };
  const bias = randomDense(width, 1, next);
  const prior = withHeadBias(output, bias);
  const refitted = refitOutput(equations, output, bias, 1e-9);
  expect(worst(multiply(refitted.output, features), targets)).toBeLessThan(1e-5);
  expect(refitted.missed).toBeLessThan(1e-9);
  const still = refitOutput(equations, output, bias, 1e9);
  expect(worst(still.output, prior)).toBeLessThan(1e-6);
  const error = added(multiply(prior, features), targets, -1).data.reduce((sum, value) => sum + value * value, 0);
  expect(still.missed / (error / equations.energy[0]!)).toBeCloseTo(1, 5);
});
