/** Seeded random GQA layers and inputs: distinct values everywhere, keys much larger than values as in trained models. */
import { type GqaMaps, type HeadLayout, inputMoment, withBias } from '../../../../model/transmla/attention-maps.ts';
import { type Dense, zeros } from '../../../../model/transmla/dense.ts';

export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const mixed = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) >>> 0;
    return ((mixed ^ (mixed >>> 13)) >>> 0) / 2 ** 32 - 0.5;
  };
}

export function randomDense(rows: number, cols: number, next: () => number, size = 1): Dense {
  const out = zeros(rows, cols);
  for (let i = 0; i < out.data.length; i++) out.data[i] = next() * size;
  return out;
}

export function randomLayer(layout: HeadLayout, hiddenDim: number, seed: number, biased = false): GqaMaps {
  const next = random(seed);
  const { numHeads, numKvHeads, headDim } = layout;
  const map = (rows: number, size: number): Dense =>
    withBias(randomDense(rows, hiddenDim, next, size), biased ? randomDense(rows, 1, next, size).data : undefined);
  return {
    query: map(numHeads * headDim, 0.8),
    key: map(numKvHeads * headDim, 0.9),
    value: map(numKvHeads * headDim, 0.1),
  };
}

/** Inputs [T, D] with a mean, and their second moment [D + 1, D + 1]. */
export function randomInputs(tokens: number, hiddenDim: number, seed: number): { x: Dense; moment: Dense } {
  const next = random(seed);
  const x = randomDense(tokens, hiddenDim, next);
  for (let t = 0; t < tokens; t++) for (let i = 0; i < hiddenDim; i++) x.data[t * hiddenDim + i]! += 0.1 * (i % 3);
  const products = new Float64Array(hiddenDim * hiddenDim);
  const sum = new Float64Array(hiddenDim);
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < hiddenDim; i++) {
      sum[i]! += x.data[t * hiddenDim + i]!;
      for (let j = 0; j < hiddenDim; j++)
        products[i * hiddenDim + j]! += x.data[t * hiddenDim + i]! * x.data[t * hiddenDim + j]!;
    }
  }
  return { x, moment: inputMoment(products, sum, tokens) };
}
