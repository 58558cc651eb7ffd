/**
 * Float64 attention of one layer by its definition, GQA and MLA, for comparing a layer before and after conversion.
 * Takes the affine maps of model/transmla/attention-maps.ts.
 */
import type { GqaMaps, HeadLayout, MlaMaps } from '../../../../model/transmla/attention-maps.ts';
import { kvHeadOf } from '../../../../model/transmla/attention-maps.ts';
import { type Dense, multiplyTransposed, zeros } from '../../../../model/transmla/dense.ts';

export interface AttentionResult {
  scores: Float64Array; // [H, T, T], keys after the query are 0
  heads: Float64Array; // [T, H, d], before W_O
}

export interface Rope {
  frequencies: readonly number[];
  attentionFactor: number;
}

/** @param x [T, D] */
export function gqaAttention(maps: GqaMaps, layout: HeadLayout, rope: Rope, x: Dense): AttentionResult {
  const d = layout.headDim;
  const q = apply(maps.query, x);
  const k = apply(maps.key, x);
  const v = apply(maps.value, x);
  return attend(layout, x.rows, {
    score: (head, m, t) => {
      const g = kvHeadOf(head, layout);
      return dot(rotate(cut(q, m, head * d, d), m, rope), rotate(cut(k, t, g * d, d), t, rope)) / Math.sqrt(d);
    },
    value: (head, t) => cut(v, t, kvHeadOf(head, layout) * d, d),
  });
}

/** @param x [T, D]  @param frequencies replaces the layer's own table */
export function mlaAttention(
  maps: MlaMaps,
  layout: HeadLayout,
  x: Dense,
  frequencies: readonly number[] = maps.frequencies,
): AttentionResult {
  const { ropeDim: p, nopeDim: n, latentDim: r } = maps;
  const d = layout.headDim;
  const rope = { frequencies, attentionFactor: 1 };
  const q = apply(maps.query, x); // [T, H (n + p)]
  const down = apply(maps.latentDown, x); // [T, r + p]
  const latent = zeros(x.rows, r);
  for (let t = 0; t < x.rows; t++) latent.data.set(cut(down, t, 0, r), t * r);
  const up = multiplyTransposed(latent, maps.latentUp); // [T, H (n + d)]
  return attend(layout, x.rows, {
    score: (head, m, t) => {
      const start = head * (n + p);
      const nope = dot(cut(q, m, start, n), cut(up, t, head * (n + d), n));
      const rotated = dot(rotate(cut(q, m, start + n, p), m, rope), rotate(cut(down, t, r, p), t, rope));
      return (nope + rotated) / Math.sqrt(d);
    },
    value: (head, t) => cut(up, t, head * (n + d) + n, d),
  });
}

function attend(
  layout: HeadLayout,
  tokens: number,
  of: { score(head: number, m: number, t: number): number; value(head: number, t: number): Float64Array },
): AttentionResult {
  const { numHeads, headDim } = layout;
  const scores = new Float64Array(numHeads * tokens * tokens);
  const heads = new Float64Array(tokens * numHeads * headDim);
  for (let head = 0; head < numHeads; head++) {
    for (let m = 0; m < tokens; m++) {
      const row = Float64Array.from({ length: m + 1 }, (_, t) => of.score(head, m, t));
      scores.set(row, (head * tokens + m) * tokens);
      const weights = row.map(Math.exp);
      const sum = weights.reduce((a, b) => a + b, 0);
      for (let t = 0; t <= m; t++) {
        of.value(head, t).forEach((value, i) => {
          heads[(m * numHeads + head) * headDim + i]! += (weights[t]! / sum) * value;
        });
      }
    }
  }
  return { scores, heads };
}

/** The affine map on every row of x. [outputs, D + 1] on [T, D] -> [T, outputs] */
export function apply(map: Dense, x: Dense): Dense {
  const augmented = zeros(x.rows, x.cols + 1);
  for (let t = 0; t < x.rows; t++) {
    augmented.data.set(cut(x, t, 0, x.cols), t * augmented.cols);
    augmented.data[t * augmented.cols + x.cols] = 1;
  }
  return multiplyTransposed(augmented, map);
}

function rotate(v: Float64Array, position: number, rope: Rope): Float64Array {
  const half = v.length / 2;
  const out = new Float64Array(v.length);
  for (let i = 0; i < half; i++) {
    const cos = Math.cos(position * rope.frequencies[i]!) * rope.attentionFactor;
    const sin = Math.sin(position * rope.frequencies[i]!) * rope.attentionFactor;
    out[i] = v[i]! * cos - v[i + half]! * sin;
    out[i + half] = v[i + half]! * cos + v[i]! * sin;
  }
  return out;
}

function cut(a: Dense, row: number, start: number, length: number): Float64Array {
  return a.data.subarray(row * a.cols + start, row * a.cols + start + length);
}

function dot(a: Float64Array, b: Float64Array): number {
  return a.reduce((sum, value, i) => sum + value * b[i]!, 0);
}
