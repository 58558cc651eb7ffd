import { describe, expect, it } from 'vitest';
import { ConfigError } from '../../../../config/errors.ts';
import { type HeadLayout, splitBias } from '../../../../model/transmla/attention-maps.ts';
import { at, congruence, multiplyTransposed, rowsOf } from '../../../../model/transmla/dense.ts';
import { latentRotation } from '../../../../model/transmla/latent-rotation.ts';
import {
  convertPublished,
  keyValueMoment,
  planLayer,
  type PublishedSettings,
} from '../../../../model/transmla/published.ts';
import { randomInputs, randomLayer } from './random-layer.ts';
import { type AttentionResult, gqaAttention, mlaAttention } from './reference-attention.ts';

const hiddenDim = 40;

/** [H, G, d]: odd head counts, one KV head, as many KV heads as heads. */
const layouts: [number, number, number][] = [
  [9, 3, 16],
  [4, 1, 8],
  [3, 3, 8],
  [8, 2, 16],
];

function layoutOf([numHeads, numKvHeads, headDim]: [number, number, number]): HeadLayout {
  return { numHeads, numKvHeads, headDim };
}

function standardRope(headDim: number, attentionFactor = 1) {
  const frequencies = Array.from({ length: headDim / 2 }, (_, i) => 10000 ** ((-2 * i) / headDim));
  return { frequencies, attentionFactor };
}

function full(layout: HeadLayout): PublishedSettings {
  const merged = layout.numKvHeads * layout.headDim;
  return { ropeDim: merged, latentDim: merged, freqfold: 1, balance: 1 };
}

function expectSame(actual: AttentionResult, expected: AttentionResult, tolerance: number) {
  for (const key of ['scores', 'heads'] as const) {
    let worst = 0;
    expected[key].forEach((value, i) => (worst = Math.max(worst, Math.abs(value - actual[key][i]!))));
    expect(actual[key].length).toBe(expected[key].length);
    expect(worst, key).toBeLessThan(tolerance);
  }
}

describe.each(layouts)('H %i, G %i, d %i', (...sizes) => {
  const layout = layoutOf(sizes);
  const merged = layout.numKvHeads * layout.headDim;
  const { x, moment } = randomInputs(60, hiddenDim, 7);
  const some = { rows: 12, cols: x.cols, data: x.data.subarray(0, 12 * x.cols) };

  it.each([false, true])('is exact when all rotary pairs and values are kept (biases: %s)', (biased) => {
    const maps = randomLayer(layout, hiddenDim, 11, biased);
    const rope = standardRope(layout.headDim, 1.2);
    const mla = convertPublished(maps, moment, layout, rope, full(layout));
    expect(mla.nopeDim).toBe(0);
    expect(mla.query.rows).toBe(layout.numHeads * merged);
    expect(mla.latentUp.rows).toBe(layout.numHeads * layout.headDim);
    expectSame(mlaAttention(mla, layout, some), gqaAttention(maps, layout, rope, some), 1e-9);
    expect(splitBias(mla.query).bias !== undefined).toBe(biased);
    expect(splitBias(mla.latentDown).bias !== undefined).toBe(biased);
  });

  it.each([2, layout.headDim, merged - 2])(
    'loses only the rotation of dropped pairs at full rank (p = %i)',
    (ropeDim) => {
      const maps = randomLayer(layout, hiddenDim, 13, true);
      const settings = { ropeDim, latentDim: 2 * merged - ropeDim, freqfold: 1, balance: 1 };
      // Pairs that would lose their rotation have none in this source: those the conversion drops at every frequency.
      const rope = { ...standardRope(layout.headDim, 1.3) };
      const mla = convertPublished(maps, moment, layout, rope, settings);
      if (ropeDim < merged) expect(mla.nopeDim).toBe(layout.headDim);
      const still = { frequencies: rope.frequencies.map(() => 0), attentionFactor: 1.3 };
      const frozen = mla.frequencies.map(() => 0);
      expectSame(mlaAttention(mla, layout, some, frozen), gqaAttention(maps, layout, still, some), 1e-9);
    },
  );

  it('keeps the rotation of a frequency whose slots are all kept', () => {
    const maps = randomLayer(layout, hiddenDim, 17);
    // Only the first frequency turns, and its keys are so large that all of its slots are kept by energy.
    for (let g = 0; g < layout.numKvHeads; g++) {
      for (const row of [g * layout.headDim, g * layout.headDim + layout.headDim / 2]) {
        rowsOf(maps.key, row, row + 1).data.forEach((value, i, data) => (data[i] = 100 * value));
      }
    }
    // A number of slots that the groups do not divide: chosen by energy.
    const slots = layout.numKvHeads % (layout.headDim / 2) === 0 ? layout.numKvHeads + 1 : layout.numKvHeads;
    const rope = { frequencies: [1, ...new Array<number>(layout.headDim / 2 - 1).fill(0)], attentionFactor: 1 };
    const settings = { ropeDim: 2 * slots, latentDim: 2 * merged - 2 * slots, freqfold: 1, balance: 1 };
    const mla = convertPublished(maps, moment, layout, rope, settings);
    expectSame(mlaAttention(mla, layout, some), gqaAttention(maps, layout, rope, some), 1e-7);
    expect(mla.frequencies.filter((frequency) => frequency === 1)).toHaveLength(layout.numKvHeads);
  });

  it('is exact with FreqFold when the folded frequencies are equal', () => {
    const maps = randomLayer(layout, hiddenDim, 19);
    const frequencies = Array.from({ length: layout.headDim / 2 }, (_, i) => 0.7 ** Math.floor(i / 4));
    const rope = { frequencies, attentionFactor: 1 };
    const mla = convertPublished(maps, moment, layout, rope, { ...full(layout), freqfold: 4 });
    expectSame(mlaAttention(mla, layout, some), gqaAttention(maps, layout, rope, some), 1e-9);
  });

  it('orders the latent by energy and reports the spectrum', () => {
    const maps = randomLayer(layout, hiddenDim, 23, true);
    const settings = { ropeDim: layout.headDim, latentDim: layout.headDim, freqfold: 2, balance: 1 };
    const mla = convertPublished(maps, moment, layout, standardRope(layout.headDim), settings);
    const { spectrum } = planLayer(keyValueMoment(maps, moment), layout, settings).joint;
    const latent = congruence(rowsOf(mla.latentDown, 0, mla.latentDim), moment);
    for (let i = 0; i < mla.latentDim; i++) {
      expect(at(latent, i, i)).toBeCloseTo(spectrum[i]!, 8);
      if (i > 0) expect(at(latent, i, i)).toBeLessThanOrEqual(at(latent, i - 1, i - 1) + 1e-12);
    }
    const rotation = latentRotation(mla, moment);
    rotation.energy.forEach((energy, i) => expect(energy).toBeCloseTo(spectrum[i]!, 8));
    const gram = multiplyTransposed(rotation.vectors, rotation.vectors);
    for (let i = 0; i < mla.latentDim; i++) expect(at(gram, i, i)).toBeCloseTo(1, 10);
  });
});

describe('sizes that do not fit', () => {
  const layout = layoutOf([9, 3, 16]);
  const maps = randomLayer(layout, hiddenDim, 29);
  const { moment } = randomInputs(60, hiddenDim, 7);
  const convert = (settings: Partial<PublishedSettings>) =>
    convertPublished(maps, moment, layout, standardRope(16), { ...full(layout), ...settings });

  it('names the flag, the valid range and the value', () => {
    expect(() => convert({ freqfold: 3 })).toThrow(
      new ConfigError('freqfold: expected a divisor of the 8 rotary frequencies of a head, got 3'),
    );
    expect(() => convert({ ropeDim: 7 })).toThrow(
      'rope-dim: expected an even number from 2 to 48 (all rotary pairs of all KV heads), got 7',
    );
    expect(() => convert({ ropeDim: 16, latentDim: 81 })).toThrow(
      'kv-rank: expected a whole number from 1 to 80 (32 nope key numbers + 48 values), got 81',
    );
  });
});

describe('concentration', () => {
  it('puts at least as much energy in the first slots as any head has, and more with folding', () => {
    const layout = layoutOf([9, 3, 16]);
    const maps = randomLayer(layout, hiddenDim, 31);
    const { moment } = randomInputs(60, hiddenDim, 7);
    const keptEnergy = (freqfold: number) =>
      planLayer(keyValueMoment(maps, moment), layout, { ropeDim: 16, latentDim: 48, freqfold, balance: 1 }).kept.reduce(
        (sum, slot) => sum + slot.energy,
        0,
      );
    const keys = congruence(maps.key, moment);
    const ofHead = [0, 1, 2].map((g) =>
      Array.from({ length: 16 }, (_, i) => at(keys, g * 16 + i, g * 16 + i)).reduce((a, b) => a + b, 0),
    );
    expect(keptEnergy(1)).toBeGreaterThan(Math.max(...ofHead));
    expect(keptEnergy(2)).toBeGreaterThan(keptEnergy(1));
    expect(keptEnergy(8)).toBeGreaterThan(keptEnergy(2));
  });
});
