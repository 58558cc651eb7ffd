/**
 * The linear maps of one attention layer before (GQA) and after (MLA) conversion, as float64 matrices. A bias is the
 * last column of its matrix and the input's constant 1 the last entry of its second moment, so that biases and means go
 * through every step by the same arithmetic as weights. Matrices are [outputs, inputs + 1]; rotary pairs are halves
 * (i, i + dim / 2). Read next: published.ts.
 */
import { invariant } from '../../config/errors.ts';
import { colsOf, type Dense, zeros } from './dense.ts';

export interface HeadLayout {
  /** H */
  readonly numHeads: number;
  /** G; query head h reads KV head floor(h G / H) */
  readonly numKvHeads: number;
  /** d */
  readonly headDim: number;
}

export interface GqaMaps {
  readonly query: Dense; // [H d, D + 1]
  readonly key: Dense; // [G d, D + 1]
  readonly value: Dense; // [G d, D + 1]
}

export interface MlaMaps {
  /** p */
  readonly ropeDim: number;
  /** n: d, or 0 when every rotary pair is kept */
  readonly nopeDim: number;
  /** r */
  readonly latentDim: number;
  readonly query: Dense; // [H (n + p), D + 1], per head nope rows, then rope rows
  readonly latentDown: Dense; // [r + p, D + 1], latent rows, then rope key rows
  readonly latentUp: Dense; // [H (n + d), r], per head nope rows, then value rows
  /** Angle per position of each rotary pair of the shared key. [p / 2] */
  readonly frequencies: readonly number[];
}

/** @param weight [outputs, inputs]  @param bias [outputs]; undefined: zeros  @returns [outputs, inputs + 1] */
export function withBias(weight: Dense, bias?: ArrayLike<number>): Dense {
  invariant(bias === undefined || bias.length === weight.rows, `withBias: ${bias?.length} for ${weight.rows} outputs`);
  const out = zeros(weight.rows, weight.cols + 1);
  for (let i = 0; i < weight.rows; i++) {
    out.data.set(weight.data.subarray(i * weight.cols, (i + 1) * weight.cols), i * out.cols);
    out.data[i * out.cols + weight.cols] = bias?.[i] ?? 0;
  }
  return out;
}

/** The inverse of withBias; a bias of zeros is none. */
export function splitBias(map: Dense): { weight: Dense; bias: Float64Array | undefined } {
  const bias = colsOf(map, map.cols - 1, map.cols).data;
  return { weight: colsOf(map, 0, map.cols - 1), bias: bias.some((value) => value !== 0) ? bias : undefined };
}

/**
 * Second moment of [x; 1], per token.
 * @param sumOfProducts [D, D] sum over tokens of x x^T  @param sum [D] sum of x  @returns [D + 1, D + 1]
 */
export function inputMoment(sumOfProducts: ArrayLike<number>, sum: ArrayLike<number>, tokens: number): Dense {
  const dim = sum.length;
  invariant(tokens > 0 && sumOfProducts.length === dim * dim, `inputMoment: ${sumOfProducts.length} products`);
  const out = zeros(dim + 1, dim + 1);
  for (let i = 0; i < dim; i++) {
    // Both triangles are read, so that float32 rounding of a rank's rows cannot make the result asymmetric.
    for (let j = 0; j < dim; j++) {
      const product = (sumOfProducts[i * dim + j] ?? 0) + (sumOfProducts[j * dim + i] ?? 0);
      out.data[i * (dim + 1) + j] = product / 2 / tokens;
    }
    out.data[i * (dim + 1) + dim] = (sum[i] ?? 0) / tokens;
    out.data[dim * (dim + 1) + i] = (sum[i] ?? 0) / tokens;
  }
  out.data[dim * (dim + 1) + dim] = 1;
  return out;
}

/** The KV head that query head `head` reads. */
export function kvHeadOf(head: number, layout: HeadLayout): number {
  return Math.floor((head * layout.numKvHeads) / layout.numHeads);
}
