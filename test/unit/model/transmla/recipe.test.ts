import { describe, expect, it } from 'vitest';
import { type GqaMaps, type HeadLayout, withBias } from '../../../../model/transmla/attention-maps.ts';
import {
  chooseComplexSlots,
  findComplexSlots,
  keyFromSlots,
  slotsFromKey,
} from '../../../../model/transmla/complex-slots.ts';
import {
  at,
  colsOf,
  congruence,
  type Dense,
  multiply,
  multiplyTransposed,
  rowsOf,
  stackRows,
  zeros,
} from '../../../../model/transmla/dense.ts';
import {
  type HeadStatistics,
  type KeyValueStatistics,
  keyValueMoments,
  phasesOf,
} from '../../../../model/transmla/layer-statistics.ts';
import {
  applyRecipe,
  applyWithoutRank,
  planRecipe,
  recipeLosses,
  recipeRotation,
} from '../../../../model/transmla/recipe.ts';
import { random, randomDense, randomInputs, randomLayer } from './random-layer.ts';
import { apply, gqaAttention, mlaAttention, type Rope } from './reference-attention.ts';

const hiddenDim = 40;

interface Case {
  layout: HeadLayout;
  maps: GqaMaps;
  output: Dense;
  statistics: KeyValueStatistics;
  x: Dense;
}

/** @param phase what the pairs of every head are turned by on average; the same for all heads unless a function */
function makeCase(sizes: [number, number, number], biased: boolean, phase: (l: number) => [number, number]): Case {
  const [numHeads, numKvHeads, headDim] = sizes;
  const layout = { numHeads, numKvHeads, headDim };
  const next = random(3);
  const maps = randomLayer(layout, hiddenDim, 11, biased);
  const outputBias = biased ? randomDense(hiddenDim, 1, next).data : undefined;
  const output = withBias(randomDense(hiddenDim, numHeads * headDim, next), outputBias);
  const { x, moment } = randomInputs(300, hiddenDim, 7);
  const heads = Array.from({ length: numHeads }, (_, h): HeadStatistics => {
    const half = headDim / 2;
    const phases = Array.from({ length: half }, (_, l) => phase(l));
    const mix = randomDense(headDim, headDim, next);
    return {
      scoreWeight: 1 + 0.3 * h,
      probabilityWeight: 2 + 0.1 * h,
      queryMoment: multiplyTransposed(mix, mix),
      ...phasesOf(
        Float64Array.from(phases, ([real]) => real),
        Float64Array.from(phases, ([, imaginary]) => imaginary),
      ),
    };
  });
  const one = zeros(1, hiddenDim + 1);
  one.data[hiddenDim] = 1;
  const keyValue = stackRows([maps.key, maps.value, one]);
  const through = (inputs: Dense): Dense => congruence(keyValue, inputs);
  const byKey = through(randomInputs(300, hiddenDim, 8).moment);
  const byValue = through(randomInputs(300, hiddenDim, 9).moment);
  const statistics = { ...keyValueMoments(byKey, byValue, through(moment)), heads };
  return { layout, maps, output, statistics, x: { rows: 10, cols: x.cols, data: x.data.subarray(0, 10 * x.cols) } };
}

/** What the layer adds to the residual stream. [T, D] */
function before({ maps, layout, output, x }: Case, rope: Rope): Dense {
  return projected(gqaAttention(maps, layout, rope, x).heads, output, x.rows);
}

function after(one: Case, rope: Rope, ropeDim: number, latentDim: number): Dense {
  const plan = planRecipe(one.output, one.statistics, one.layout, ropeDim);
  const { maps, output } = applyRecipe(one.maps, one.output, one.statistics, one.layout, rope, plan, latentDim);
  return projected(mlaAttention(maps, one.layout, one.x).heads, output, one.x.rows);
}

function projected(heads: Float64Array, output: Dense, tokens: number): Dense {
  return apply(output, { rows: tokens, cols: heads.length / tokens, data: heads });
}

function worst(a: Dense, b: Dense): number {
  return a.data.reduce((max, value, i) => Math.max(max, Math.abs(value - b.data[i]!)), 0);
}

const sizes: [number, number, number][] = [
  [9, 3, 16],
  [4, 1, 8],
  [3, 3, 8],
];

describe.each(sizes)('H %i, G %i, d %i', (numHeads, numKvHeads, headDim) => {
  const merged = numKvHeads * headDim;
  const turning: Rope = {
    frequencies: Array.from({ length: headDim / 2 }, (_, l) => 0.5 ** l),
    attentionFactor: 1.2,
  };

  it.each([false, true])('is exact when every slot keeps RoPE (biases: %s)', (biased) => {
    const one = makeCase([numHeads, numKvHeads, headDim], biased, () => [0.3, -0.2]);
    expect(worst(after(one, turning, merged, merged), before(one, turning))).toBeLessThan(1e-8);
  });

  it('is exact at full rank where dropped pairs do not turn', () => {
    const one = makeCase([numHeads, numKvHeads, headDim], true, () => [1, 0]);
    const still = { frequencies: turning.frequencies.map(() => 0), attentionFactor: 1.2 };
    for (const ropeDim of [2, headDim]) {
      const converted = after(one, still, ropeDim, 2 * merged - ropeDim);
      expect(worst(converted, before(one, still))).toBeLessThan(1e-8);
    }
  });

  it('without axes is what it is with all of them', () => {
    const one = makeCase([numHeads, numKvHeads, headDim], true, (l) => [0.9 ** l, 0.2]);
    const plan = planRecipe(one.output, one.statistics, one.layout, 4);
    const { maps, output } = applyWithoutRank(one.maps, one.output, one.statistics, one.layout, turning, plan);
    expect(maps.latentDim).toBe(2 * merged - 4);
    const converted = projected(mlaAttention(maps, one.layout, one.x).heads, output, one.x.rows);
    expect(worst(converted, after(one, turning, 4, 2 * merged - 4))).toBeLessThan(1e-8);
  });

  it('keeps RoPE where the phase is lost, and loses nothing else', () => {
    // Only the first frequency turns; all others keep their phase and need no RoPE.
    const one = makeCase([numHeads, numKvHeads, headDim], false, (l) => (l === 0 ? [0, 0] : [1, 0]));
    const rope = { frequencies: turning.frequencies.map((_, l) => (l === 0 ? 1 : 0)), attentionFactor: 1 };
    const ropeDim = 2 * numKvHeads;
    const plan = planRecipe(one.output, one.statistics, one.layout, ropeDim);
    expect(plan.kept.map((slot) => slot.frequency)).toEqual(new Array(numKvHeads).fill(0));
    expect(worst(after(one, rope, ropeDim, 2 * merged - ropeDim), before(one, rope))).toBeLessThan(1e-8);
  });

  it('has unitary slots whose energies are those of the weighted keys', () => {
    const { statistics, layout } = makeCase([numHeads, numKvHeads, headDim], true, () => [0.5, 0.5]);
    const slots = findComplexSlots(statistics, layout);
    const back = multiply(keyFromSlots(slots, layout), slotsFromKey(slots, layout));
    for (let i = 0; i < merged; i++)
      for (let j = 0; j < merged; j++) expect(at(back, i, j)).toBeCloseTo(i === j ? 1 : 0, 9);
    const energies = congruence(slotsFromKey(slots, layout), statistics.keyMoment);
    const unit = new Map<number, number>(); // weighted over plain energy of each frequency
    slots.forEach((slot, s) => {
      const energy = at(energies, s, s) + at(energies, slots.length + s, slots.length + s);
      const first = slots.find((other) => other.frequency === slot.frequency)!;
      unit.set(slot.frequency, unit.get(slot.frequency) ?? first.energy / energy);
      expect((energy * unit.get(slot.frequency)!) / slot.energy).toBeCloseTo(1, 9);
      const scale = slot.scales.reduce((sum, value) => sum + value * value, 0) / numKvHeads;
      expect(scale).toBeCloseTo(1, 9);
      expect(slot.loss / slot.energy).toBeCloseTo(0.5, 9);
    });
    const { kept, dropped } = chooseComplexSlots(slots, headDim);
    expect(Math.min(...kept.map((slot) => slot.loss))).toBeGreaterThanOrEqual(
      Math.max(...dropped.map((slot) => slot.loss)),
    );
  });

  it('loses exactly the weighted energy that it predicts', () => {
    const one = makeCase([numHeads, numKvHeads, headDim], true, () => [1, 0]);
    const ropeDim = headDim / 2;
    const latentDim = headDim;
    const plan = planRecipe(one.output, one.statistics, one.layout, ropeDim);
    const { maps } = applyRecipe(one.maps, one.output, one.statistics, one.layout, turning, plan, latentDim);
    // Latents are uncorrelated and centred under the value weights; the weighted [residual key; value] they decode to
    // differs from the true one by the spectrum's tail.
    const encoder = multiply(rowsOf(plan.axes, 0, latentDim), plan.weighting);
    const latent = congruence(encoder, one.statistics.covariance);
    for (let i = 0; i < latentDim; i++) expect(at(latent, i, i) / plan.spectrum[i]!).toBeCloseTo(1, 8);
    expect(maps.latentDim).toBe(latentDim);
    const tail = plan.spectrum.subarray(latentDim).reduce((a, b) => a + b, 0);
    const { rotation, rank } = recipeLosses(plan, latentDim);
    expect((rotation + rank) / tail).toBeCloseTo(1, 9);
    const total = congruence(plan.weighting, one.statistics.covariance);
    const trace = Array.from({ length: total.rows }, (_, i) => at(total, i, i)).reduce((a, b) => a + b, 0);
    expect(plan.spectrum.reduce((a, b) => a + b, 0) / trace).toBeCloseTo(1, 9);
  });

  it('gives the principal axes of the latent it writes', () => {
    const one = makeCase([numHeads, numKvHeads, headDim], true, () => [0.7, 0]);
    const plan = planRecipe(one.output, one.statistics, one.layout, 4);
    const { maps } = applyRecipe(one.maps, one.output, one.statistics, one.layout, turning, plan, 6);
    const rotation = recipeRotation(one.statistics, plan, 6);
    const { moment } = randomInputs(300, hiddenDim, 7);
    const rotated = multiply(rotation.vectors, rowsOf(maps.latentDown, 0, 6));
    const second = congruence(rotated, moment);
    rotation.energy.forEach((energy, i) => expect(at(second, i, i)).toBeCloseTo(energy, 8));
    expect(Math.abs(at(second, 0, 1))).toBeLessThan(1e-9 * rotation.energy[0]!);
    expect(colsOf(maps.latentUp, 0, 6).rows).toBe(numHeads * 2 * headDim);
  });
});
