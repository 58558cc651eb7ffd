import { describe, expect, it } from 'vitest';
import {
  candidateSettings,
  chooseSettings,
  recipeCandidates,
  type SizeRequest,
} from '../../../../coordinator/convert/choose-settings.ts';
import { keyValueMoment } from '../../../../model/transmla/published.ts';
import { randomInputs, randomLayer } from '../../model/transmla/random-layer.ts';

const layout = { numHeads: 9, numKvHeads: 3, headDim: 64 }; // 384 cache numbers
const nothing: SizeRequest = {
  exact: false,
  portable: false,
  ropeDim: null,
  kvRank: null,
  cacheRatio: null,
  freqfold: 'auto',
  balance: 'auto',
};

function candidates(request: Partial<SizeRequest>) {
  return candidateSettings({ ...nothing, ...request }, layout);
}

function sizes(request: Partial<SizeRequest>) {
  return candidates(request).map(({ ropeDim, latentDim, freqfold }) => [ropeDim, latentDim, freqfold]);
}

describe('candidateSettings', () => {
  it('keeps everything for exact', () => {
    expect(candidates({ exact: true })).toEqual([{ ropeDim: 192, latentDim: 192, freqfold: 1, balance: 1 }]);
  });

  it('spends half the cache when nothing is given, split in several ways', () => {
    const tried = sizes({});
    expect(tried).toHaveLength(16);
    for (const [rope = 0, latent = 0] of tried) expect(rope + latent).toBe(192);
    expect(new Set(tried.map(([rope]) => rope))).toEqual(new Set([16, 32, 48, 64]));
    expect(new Set(tried.map(([, , fold]) => fold))).toEqual(new Set([1, 2, 4, 8]));
  });

  it('takes given sizes, and fills the other from the ratio', () => {
    expect(sizes({ ropeDim: 64, kvRank: 100, freqfold: 2 })).toEqual([[64, 100, 2]]);
    expect(sizes({ ropeDim: 48, cacheRatio: 0.25, freqfold: 1 })).toEqual([[48, 48, 1]]);
    expect(sizes({ kvRank: 100, cacheRatio: 0.5, freqfold: 1 })).toEqual([[92, 100, 1]]);
  });

  it('never plans a latent that would be partly empty', () => {
    expect(sizes({ cacheRatio: 1, ropeDim: 64, freqfold: 1 })).toEqual([[64, 320, 1]]);
  });

  it('refuses contradictions and impossible numbers, all at once', () => {
    expect(() => candidates({ exact: true, ropeDim: 64, freqfold: 2 })).toThrow(
      'exact: keeps every number of the cache; leave out --rope-dim, --kv-rank and --cache-ratio\n' +
        'exact: --freqfold 2 is an approximation; leave it out',
    );
    expect(() => candidates({ cacheRatio: 0.5, ropeDim: 64, kvRank: 128 })).toThrow(
      'cache-ratio: --rope-dim and --kv-rank fix the cache already; leave one of the three out',
    );
    expect(() => candidates({ cacheRatio: 0 })).toThrow('cache-ratio: expected a number above 0 and at most 1, got 0');
    expect(() => candidates({ balance: -1 })).toThrow('balance: expected auto or a number above 0, got -1');
    expect(() => candidates({ cacheRatio: 0.1, ropeDim: 64 })).toThrow(
      'cache-ratio: 38 numbers per token leave nothing for the latent beside rope-dim 64',
    );
  });
});

describe('recipeCandidates', () => {
  it('tries finer rope dims and folds nothing', () => {
    const tried = recipeCandidates(nothing, layout);
    expect(tried.map(({ ropeDim }) => ropeDim)).toEqual([16, 24, 32, 40, 48, 56, 64]);
    for (const { ropeDim, latentDim } of tried) expect(ropeDim + latentDim).toBe(192);
  });

  it('tries wider rotary keys where the cache is large', () => {
    const ropeDims = (request: Partial<SizeRequest>) =>
      recipeCandidates({ ...nothing, cacheRatio: 5 / 6, ...request }, layout).map(({ ropeDim }) => ropeDim);
    expect(ropeDims({})).toEqual([16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128]);
    expect(ropeDims({ portable: true })).toEqual([16, 24, 32, 40, 48, 56, 64]);
    expect(ropeDims({ cacheRatio: 2 / 3 })).toEqual([16, 24, 32, 40, 48, 56, 64, 80, 96]);
  });

  it('refuses the flags of the published method', () => {
    expect(() => recipeCandidates({ ...nothing, freqfold: 2, balance: 3 }, layout)).toThrow(
      'freqfold: belongs to --method published; leave it out\nbalance: belongs to --method published; leave it out',
    );
  });
});

describe('chooseSettings', () => {
  const small = { numHeads: 6, numKvHeads: 3, headDim: 16 };
  const { moment } = randomInputs(80, 40, 1);
  const moments = [1, 2].map((seed) => keyValueMoment(randomLayer(small, 40, seed), moment));
  const choose = (frequencies: number[], freqfolds: number[]) =>
    chooseSettings(
      freqfolds.map((freqfold) => ({ ropeDim: 16, latentDim: 32, freqfold, balance: 1 })),
      moments,
      small,
      { frequencies, attentionFactor: 1 },
      1000,
    ).freqfold;

  it('folds where frequencies are equal and not where they are far apart', () => {
    const equal = Array.from({ length: 8 }, (_, i) => 0.3 ** Math.floor(i / 2));
    expect(choose(equal, [1, 2, 4])).toBe(2);
    expect(choose([1, 0.001, 0.9, 0.002, 0.8, 0.003, 0.7, 0.004], [1, 2])).toBe(1);
  });
});
