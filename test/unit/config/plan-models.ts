/** Models of any size for plans, and what every plan must keep. */
import { expect } from 'vitest';
import { plainFeatures, type ModelConfig } from '../../../config/model-config.ts';
import type { Range } from '../../../config/shard-plan.ts';

const sizes = {
  ...plainFeatures,
  architecture: 'test',
  hiddenDim: 64,
  numLayers: 2,
  contextLength: 128,
  normEps: 1e-5,
  rope: { frequencies: [1], attentionFactor: 1, interleaved: false },
  tiedEmbeddings: false,
} as const;

export function gqaModel(
  numKvHeads: number,
  queriesPerKvHead: number,
  feedForwardDim: number,
  vocabSize: number,
): ModelConfig {
  return {
    ...sizes,
    numHeads: numKvHeads * queriesPerKvHead,
    vocabSize,
    attention: { kind: 'gqa', numKvHeads, headDim: 16, scoreScale: 0.25, scoreSoftcap: 0, headNorms: false },
    feedForward: { kind: 'gated', dim: feedForwardDim, activation: 'silu' },
  };
}

export function mlaModel(numHeads: number, latentDim: number, feedForwardDim = 100, vocabSize = 300): ModelConfig {
  return {
    ...sizes,
    numHeads,
    vocabSize,
    attention: {
      kind: 'mla',
      latentDim,
      ropeDim: 8,
      nopeDim: 8,
      valueDim: 16,
      queryLoraDim: null,
      latentNormEps: 1e-6,
      scoreScale: 0.25,
      scoreSoftcap: 0,
    },
    feedForward: { kind: 'gated', dim: feedForwardDim, activation: 'silu' },
  };
}

/** How often each index below `total` lies in one of the ranges. */
export function coverage(ranges: readonly Range[], total: number): number[] {
  const counts = new Array<number>(total).fill(0);
  for (const { start, end } of ranges) for (let i = start; i < end; i++) counts[i] = (counts[i] ?? 0) + 1;
  return counts;
}

export function expectEachOnce(ranges: readonly Range[], total: number): void {
  expect(coverage(ranges, total)).toEqual(new Array<number>(total).fill(1));
  expect(ranges.every(({ start, end }) => start >= 0 && end >= start && end <= total)).toBe(true);
}
