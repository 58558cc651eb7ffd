/**
 * The conversion of one attention layer that loses least without training (docs/conversion.md, steps 2 to 5).
 * Against published.ts: every error is weighed by what it does to the residual stream; the rotary mix is unitary; pairs
 * that lose RoPE are turned by their mean phase instead of not at all; the pairs that would lose most keep RoPE; and the
 * joint PCA is centred. Words: slot (complex-slots.ts), residual key (the part of the keys that loses RoPE), phase (the
 * complex number that stands for the rotation of a residual pair, one per query head and frequency).
 * Cost for G d = 192, D = 576: about 0.8 s, most of it one eigenproblem of size 2 G d. Read next: write-converted.ts.
 */
import { type GqaMaps, type HeadLayout, kvHeadOf, type MlaMaps } from './attention-maps.ts';
import {
  chooseComplexSlots,
  chooseFastestSlots,
  type ComplexSlot,
  findComplexSlots,
  keyFromSlots,
  slotsFromKey,
} from './complex-slots.ts';
import {
  added,
  at,
  blockDiagonal,
  colsOf,
  congruence,
  type Dense,
  frobeniusNorm,
  identity,
  multiply,
  joinCols,
  multiplyTransposed,
  rowsOf,
  scaled,
  scaleCols,
  stackRows,
  transpose,
  zeros,
} from './dense.ts';
import { symmetricEigen, symmetricRoot } from './eigen.ts';
import type { LatentRotation } from './latent-rotation.ts';
import type { HeadStatistics, KeyValueStatistics } from './layer-statistics.ts';
import type { SourceRope } from './published.ts';
import { type RecipeStep, wholeRecipe } from './recipe-steps.ts';

export interface RecipeSettings {
  /** p */
  readonly ropeDim: number;
  /** r */
  readonly latentDim: number;
}

/**
 * alpha: how much more a score error counts than first order says. Errors of scores add up over layers and tokens
 * while those of values average out; 2 was best of 0.5, 1, 2.
 */
const scoreErrorWeight = 2;

/** Components with less than this share of the largest one are rounding and decode to nothing. */
const rankTolerance = 1e-12;

export interface RecipeLayer {
  readonly maps: MlaMaps;
  /** Replaces o_proj; its bias carries the mean value. [D, H d + 1] */
  readonly output: Dense;
  /** That mean value, which near tokens leave out of theirs. [G d, 1] */
  readonly meanValue: Dense;
  /** What the mean key adds to all scores by latents, per number of a nope query; cancels where all are. [H d, 1] */
  readonly farSlope: Dense;
}

/** What the statistics decide for a rope dim, whatever the latent's width. */
export interface RecipePlan {
  readonly kept: readonly ComplexSlot[];
  readonly dropped: readonly ComplexSlot[];
  /** Residual of the merged key: what the dropped slots carry. [G d, G d] */
  readonly residual: Dense;
  /** Weighted [residual key; value] from [key; value]. [2 G d, 2 G d] */
  readonly weighting: Dense;
  /** Brings the latent to the size of the keys and values it stands for: half floats and caches have a range. */
  readonly latentScale: number;
  /** Eigenvalues of the weighted covariance, largest first, and their vectors as rows. */
  readonly spectrum: Float64Array; // [2 G d]
  readonly axes: Dense; // [2 G d, 2 G d]
}

/**
 * @param output [D, H d + 1], last column the bias
 * @param portable one slot of each of the fastest frequencies keeps RoPE instead of those that lose most without
 */
export function planRecipe(
  output: Dense,
  statistics: KeyValueStatistics,
  layout: HeadLayout,
  ropeDim: number,
  without: ReadonlySet<RecipeStep> = wholeRecipe,
  portable = false,
): RecipePlan {
  const slots = findComplexSlots(statistics, layout, without);
  const { kept, dropped } = portable ? chooseFastestSlots(slots, ropeDim) : chooseComplexSlots(slots, ropeDim, without);
  const residual = multiply(keyFromSlots(dropped, layout), slotsFromKey(dropped, layout));
  const weighting = weightingOf(output, statistics, layout, residual);
  const { values: spectrum, vectors: axes } = symmetricEigen(congruence(weighting, statistics.covariance));
  const norm = frobeniusNorm(weighting);
  const latentScale = norm > 0 ? Math.sqrt(weighting.rows) / norm : 1;
  return { kept, dropped, residual, weighting, latentScale, spectrum, axes };
}

/**
 * Expected losses of a plan at a latent width, in the units of the pair weights: comparable between plans of one layer.
 * rotation: pairs that lose RoPE; rank: what the latent leaves out.
 */
export function recipeLosses(plan: RecipePlan, latentDim: number): { rotation: number; rank: number } {
  const rotation = plan.dropped.reduce((sum, slot) => sum + slot.loss, 0);
  const rank = plan.spectrum.subarray(latentDim).reduce((sum, value) => sum + Math.max(0, value), 0);
  return { rotation: scoreErrorWeight ** 2 * rotation, rank };
}

export function applyRecipe(
  maps: GqaMaps,
  output: Dense,
  statistics: KeyValueStatistics,
  layout: HeadLayout,
  rope: SourceRope,
  plan: RecipePlan,
  latentDim: number,
): RecipeLayer {
  const merged = layout.numKvHeads * layout.headDim;
  const encoder = encoderOf(plan, latentDim);
  // Decoders by regression on the latent, whose covariance is diagonal: the spectrum, scaled.
  const largest = plan.spectrum[0] ?? 0;
  const inverse = plan.spectrum
    .subarray(0, latentDim)
    .map((value) => (value > rankTolerance * largest ? 1 / (value * plan.latentScale ** 2) : 0));
  const decoder = scaleCols(multiplyTransposed(statistics.covariance, encoder), inverse); // [2 G d, r]
  const keyUp = multiply(plan.residual, rowsOf(decoder, 0, merged)); // [G d, r]
  const valueUp = rowsOf(decoder, merged, 2 * merged);

  const factor = rope.attentionFactor ** 2;
  const meanKey = rowsOf(statistics.mean, 0, merged);
  const meanValue = rowsOf(statistics.mean, merged, 2 * merged);
  const latentRows = centred(multiply(encoder, stackRows([maps.key, maps.value])), multiply(encoder, statistics.mean));
  return {
    maps: {
      ropeDim: 2 * plan.kept.length,
      nopeDim: layout.headDim,
      latentDim,
      query: queryRows(maps.query, scaled(keyFromSlots(plan.kept, layout), factor), layout),
      latentDown: stackRows([latentRows, multiply(slotsFromKey(plan.kept, layout), maps.key)]),
      latentUp: latentUpRows(scaled(keyUp, factor), valueUp, statistics, layout),
      frequencies: plan.kept.map((slot) => rope.frequencies[slot.frequency] ?? 0),
    },
    output: withMeanValue(output, meanValue, layout),
    meanValue,
    farSlope: stackRows(headKeys(scaled(multiply(plan.residual, meanKey), factor), statistics, layout)),
  };
}

/** The same with nothing left out of the latent, which then needs no axes: the slots that lost RoPE, and the values. */
export function applyWithoutRank(
  maps: GqaMaps,
  output: Dense,
  statistics: KeyValueStatistics,
  layout: HeadLayout,
  rope: SourceRope,
  plan: RecipePlan,
): RecipeLayer {
  const merged = layout.numKvHeads * layout.headDim;
  const { kept, dropped } = plan;
  const factor = rope.attentionFactor ** 2;
  const keyUp = joinCols([keyFromSlots(dropped, layout), zeros(merged, merged)]);
  const valueUp = joinCols([zeros(merged, 2 * dropped.length), identity(merged)]);
  return {
    maps: {
      ropeDim: 2 * kept.length,
      nopeDim: layout.headDim,
      latentDim: 2 * dropped.length + merged,
      query: queryRows(maps.query, scaled(keyFromSlots(kept, layout), factor), layout),
      latentDown: stackRows([
        multiply(slotsFromKey(dropped, layout), maps.key),
        maps.value,
        multiply(slotsFromKey(kept, layout), maps.key),
      ]),
      latentUp: latentUpRows(scaled(keyUp, factor), valueUp, statistics, layout),
      frequencies: kept.map((slot) => rope.frequencies[slot.frequency] ?? 0),
    },
    output,
    meanValue: zeros(merged, 1),
    farSlope: zeros(layout.numHeads * layout.headDim, 1),
  };
}

/** Principal axes of the latent that applyRecipe makes, all tokens alike. */
export function recipeRotation(statistics: KeyValueStatistics, plan: RecipePlan, latentDim: number): LatentRotation {
  const encoder = encoderOf(plan, latentDim);
  const centring = joinCols([encoder, scaled(multiply(encoder, statistics.mean), -1)]); // [r, 2 G d + 1]
  const { values, vectors } = symmetricEigen(congruence(centring, statistics.plainMoment));
  return { vectors, energy: values };
}

/** The latent is encoder ([key; value] - mean). [r, 2 G d] */
function encoderOf(plan: RecipePlan, latentDim: number): Dense {
  return scaled(multiply(rowsOf(plan.axes, 0, latentDim), plan.weighting), plan.latentScale);
}

/** Multiplication of every pair of a head by its phase. [d, d] */
export function phaseMatrix({ phaseReal, phaseImaginary }: HeadStatistics): Dense {
  const half = phaseReal.length;
  const out = zeros(2 * half, 2 * half);
  phaseReal.forEach((real, l) => {
    const imaginary = phaseImaginary[l] ?? 0;
    out.data[l * out.cols + l] = real;
    out.data[l * out.cols + half + l] = -imaginary;
    out.data[(half + l) * out.cols + l] = imaginary;
    out.data[(half + l) * out.cols + half + l] = real;
  });
  return out;
}

/**
 * Square roots of what an error costs, per KV head: of residual keys A_j = sum_h W_h Phi_h^T E[q q^T] Phi_h, of values
 * B_j = sum_h P_h W_O,h^T W_O,h.
 */
function weightingOf(output: Dense, statistics: KeyValueStatistics, layout: HeadLayout, residual: Dense): Dense {
  const { numKvHeads, headDim } = layout;
  const keys = Array.from({ length: numKvHeads }, () => zeros(headDim, headDim));
  const values = Array.from({ length: numKvHeads }, () => zeros(headDim, headDim));
  const addTo = (sums: Dense[], kvHead: number, term: Dense, weight: number): void => {
    const sum = sums[kvHead];
    if (sum !== undefined) sums[kvHead] = added(sum, term, weight);
  };
  statistics.heads.forEach((head, h) => {
    const kvHead = kvHeadOf(h, layout);
    addTo(keys, kvHead, congruence(transpose(phaseMatrix(head)), head.queryMoment), head.scoreWeight);
    const columns = transpose(colsOf(output, h * headDim, (h + 1) * headDim)); // [d, D]
    addTo(values, kvHead, multiplyTransposed(columns, columns), head.probabilityWeight);
  });
  const keyRoot = scaled(blockDiagonal(keys.map(symmetricRoot)), scoreErrorWeight);
  return blockDiagonal([multiply(keyRoot, residual), blockDiagonal(values.map(symmetricRoot))]);
}

/** Subtracts the mean from what the constant input 1 contributes. @param rows [r, D + 1]  @param mean [r, 1] */
function centred(rows: Dense, mean: Dense): Dense {
  const out = { ...rows, data: rows.data.slice() };
  for (let i = 0; i < rows.rows; i++) {
    const place = (i + 1) * rows.cols - 1;
    out.data[place] = (out.data[place] ?? 0) - at(mean, i, 0);
  }
  return out;
}

/** Per head: the source's own rows, then the rows that meet the shared rotary key. @param keyUp merged key from z [G d, p] */
function queryRows(query: Dense, keyUp: Dense, layout: HeadLayout): Dense {
  const { numHeads, headDim } = layout;
  const parts: Dense[] = [];
  for (let head = 0; head < numHeads; head++) {
    const rows = rowsOf(query, head * headDim, (head + 1) * headDim);
    const kvHead = kvHeadOf(head, layout);
    parts.push(rows, multiply(transpose(rowsOf(keyUp, kvHead * headDim, (kvHead + 1) * headDim)), rows));
  }
  return stackRows(parts);
}

/** Per head: W_UK rows turned by the head's phases, then W_UV rows. [H (d + d), r] */
function latentUpRows(keyUp: Dense, valueUp: Dense, statistics: KeyValueStatistics, layout: HeadLayout): Dense {
  const parts = headKeys(keyUp, statistics, layout).flatMap((key, h) => {
    const start = kvHeadOf(h, layout) * layout.headDim;
    return [key, rowsOf(valueUp, start, start + layout.headDim)];
  });
  return stackRows(parts);
}

/** For each query head the merged key's rows that it reads, turned by its phases. @param keys [G d, k]  @returns [d, k] each */
function headKeys(keys: Dense, statistics: KeyValueStatistics, layout: HeadLayout): Dense[] {
  return statistics.heads.map((head, h) => {
    const start = kvHeadOf(h, layout) * layout.headDim;
    return multiply(phaseMatrix(head), rowsOf(keys, start, start + layout.headDim));
  });
}

/** A constant value reaches every output unchanged, because probabilities sum to 1. @param mean [G d, 1] */
function withMeanValue(output: Dense, mean: Dense, layout: HeadLayout): Dense {
  const { numHeads, headDim } = layout;
  const means = stackRows(
    Array.from({ length: numHeads }, (_, h) => {
      const start = kvHeadOf(h, layout) * headDim;
      return rowsOf(mean, start, start + headDim);
    }),
  ); // [H d, 1]
  const shift = multiply(colsOf(output, 0, numHeads * headDim), means); // [D, 1]
  return centred(output, scaled(shift, -1));
}
