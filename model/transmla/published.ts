/**
 * The published conversion of one attention layer from GQA to MLA (TransMLA, arXiv 2502.07864; spec: maths.md,
 * section 2): merge the KV heads, gather rotary energy (rope-slots.ts), keep RoPE for p numbers, and replace the other
 * key numbers and the values by one latent through a PCA. Needs only the second moment of the layer input. With every
 * rotary pair kept (p = G d) and r = G d it is exact. It refuses sizes that do not fit and knows nothing about files.
 * Read next: write-converted.ts.
 */
import { ConfigError } from '../../config/errors.ts';
import { type GqaMaps, type HeadLayout, kvHeadOf, type MlaMaps } from './attention-maps.ts';
import {
  colsOf,
  congruence,
  type Dense,
  diagonal,
  identity,
  joinCols,
  multiply,
  rowsOf,
  scaled,
  stackRows,
  transpose,
  zeros,
} from './dense.ts';
import { type Eigen, symmetricEigen } from './eigen.ts';
import { checkFreqfold, checkRopeDim, chooseSlots, findSlots, type Slot, slotRows } from './rope-slots.ts';

export interface PublishedSettings {
  /** p: numbers of the shared rotary key. */
  readonly ropeDim: number;
  /** r: numbers of the latent. */
  readonly latentDim: number;
  /** F: neighbouring frequencies treated as equal; 1 is exact. */
  readonly freqfold: number;
  /** Norm of the values relative to that of the nope keys in the joint PCA; 1 = equal norms. */
  readonly balance: number;
}

/** RoPE of the source, as in RopeConfig. */
export interface SourceRope {
  readonly frequencies: readonly number[]; // [d / 2]
  readonly attentionFactor: number;
}

/** What the second moments decide: which pairs keep RoPE, and the latent's axes. Independent of the weights' hidden size. */
export interface LayerPlan {
  readonly kept: readonly Slot[];
  readonly dropped: readonly Slot[];
  readonly ropeRows: Dense; // [p, G d]
  readonly joint: JointPca;
}

/**
 * @param moment second moment of [x; 1] per token [D + 1, D + 1]
 * @throws ConfigError for sizes that do not fit this layer
 */
export function convertPublished(
  maps: GqaMaps,
  moment: Dense,
  layout: HeadLayout,
  rope: SourceRope,
  settings: PublishedSettings,
): MlaMaps {
  return applyPlan(maps, layout, rope, planLayer(keyValueMoment(maps, moment), layout, settings));
}

/** @throws ConfigError for sizes that do not fit a layer of this layout; so do the functions that take them */
export function checkSettings(settings: PublishedSettings, layout: HeadLayout): void {
  const { ropeDim, latentDim, freqfold } = settings;
  const mergedDim = layout.numKvHeads * layout.headDim;
  checkFreqfold(freqfold, layout);
  checkRopeDim(ropeDim, mergedDim);
  const width = 2 * mergedDim - ropeDim;
  if (!Number.isInteger(latentDim) || latentDim < 1 || latentDim > width)
    throw new ConfigError(
      `kv-rank: expected a whole number from 1 to ${width} (${mergedDim - ropeDim} nope key numbers + ${mergedDim} values), got ${latentDim}`,
    );
}

/** Second moment of [key; value] before RoPE. [2 G d, 2 G d] */
export function keyValueMoment(maps: GqaMaps, moment: Dense): Dense {
  return congruence(stackRows([maps.key, maps.value]), moment);
}

/** Steps 2 to 4. @throws ConfigError for sizes that do not fit this layer */
export function planLayer(keyValueMoment: Dense, layout: HeadLayout, settings: PublishedSettings): LayerPlan {
  checkSettings(settings, layout);
  const mergedDim = layout.numKvHeads * layout.headDim;
  const keyMoment = colsOf(rowsOf(keyValueMoment, 0, mergedDim), 0, mergedDim);
  const { kept, dropped } = chooseSlots(findSlots(keyMoment, layout, settings.freqfold), settings.ropeDim);
  const nopeRows = slotRows(dropped, layout, settings.freqfold); // [G d - p, G d]
  return {
    kept,
    dropped,
    ropeRows: slotRows(kept, layout, settings.freqfold),
    joint: joinNopeAndValues(nopeRows, keyValueMoment, settings),
  };
}

/** Steps 1, 3, 5 and 6: the maps of the converted layer. */
export function applyPlan(maps: GqaMaps, layout: HeadLayout, rope: SourceRope, plan: LayerPlan): MlaMaps {
  const { joint, ropeRows } = plan;
  const latentRows = multiply(joint.basis, stackRows([maps.key, maps.value])); // [r, D + 1]
  // The source multiplies query and key of every pair by the attention factor; the converted model has none of its own.
  const factor = rope.attentionFactor ** 2;
  const keyUp = scaled(joint.keyUp, factor); // [G d, r]
  const nopeDim = plan.dropped.length > 0 ? layout.headDim : 0;
  return {
    ropeDim: ropeRows.rows,
    nopeDim,
    latentDim: latentRows.rows,
    query: queryRows(maps.query, scaled(ropeRows, factor), nopeDim, layout),
    latentDown: stackRows([latentRows, multiply(ropeRows, maps.key)]),
    latentUp: latentUpRows(keyUp, joint.valueUp, nopeDim, layout),
    frequencies: plan.kept.map((slot) => rope.frequencies[slot.frequency] ?? 0),
  };
}

export interface JointPca {
  /** Latent from [key; value] before RoPE. [r, 2 G d] */
  readonly basis: Dense;
  /** Nope part of the merged key from the latent. [G d, r] */
  readonly keyUp: Dense;
  /** Merged value from the latent. [G d, r] */
  readonly valueUp: Dense;
  /** Second moments of the balanced [nope keys; values] along the axes of the PCA, largest first. [2 G d - p] */
  readonly spectrum: Float64Array;
}

/** Step 4: one PCA over the nope keys, divided by the norm ratio, and the values. */
function joinNopeAndValues(nopeRows: Dense, keyValueMoment: Dense, settings: PublishedSettings): JointPca {
  const mergedDim = nopeRows.cols;
  const width = nopeRows.rows + mergedDim;
  const ratio = normRatio(nopeRows, keyValueMoment) / settings.balance;
  const values = joinCols([zeros(mergedDim, mergedDim), identity(mergedDim)]);
  const nope = joinCols([scaled(nopeRows, 1 / ratio), zeros(nopeRows.rows, mergedDim)]);
  const stacked = stackRows([nope, values]); // [2 G d - p, 2 G d]
  const pca: Eigen = symmetricEigen(congruence(stacked, keyValueMoment));
  const components = rowsOf(pca.vectors, 0, settings.latentDim); // [r, 2 G d - p]
  const up = transpose(components); // [2 G d - p, r]
  return {
    basis: multiply(components, stacked),
    keyUp: scaled(multiply(transpose(nopeRows), rowsOf(up, 0, nopeRows.rows)), ratio),
    valueUp: rowsOf(up, nopeRows.rows, width),
    spectrum: pca.values,
  };
}

/** Mean over coordinates of the root mean square, nope keys over values: the published code's measure. */
function normRatio(nopeRows: Dense, keyValueMoment: Dense): number {
  const mergedDim = nopeRows.cols;
  if (nopeRows.rows === 0) return 1;
  const keys = congruence(nopeRows, colsOf(rowsOf(keyValueMoment, 0, mergedDim), 0, mergedDim));
  const keyNorm = meanRoot(diagonal(keys));
  const valueNorm = meanRoot(diagonal(keyValueMoment).subarray(mergedDim));
  return keyNorm > 0 && valueNorm > 0 ? keyNorm / valueNorm : 1;
}

function meanRoot(squares: Float64Array): number {
  return squares.reduce((sum, square) => sum + Math.sqrt(Math.max(0, square)), 0) / squares.length;
}

/** Per head: the source's own rows (its map into the latent is in W_UK), then the rows that meet the shared rotary key. */
function queryRows(query: Dense, ropeRows: Dense, nopeDim: number, layout: HeadLayout): Dense {
  const parts: Dense[] = [];
  for (let head = 0; head < layout.numHeads; head++) {
    const rows = rowsOf(query, head * layout.headDim, (head + 1) * layout.headDim);
    const kvHead = kvHeadOf(head, layout);
    const block = colsOf(ropeRows, kvHead * layout.headDim, (kvHead + 1) * layout.headDim); // [p, d]
    if (nopeDim > 0) parts.push(rows);
    parts.push(multiply(block, rows));
  }
  return stackRows(parts);
}

/** Per head: W_UK rows, then W_UV rows, both those of the KV head it reads. [H (n + d), r] */
function latentUpRows(keyUp: Dense, valueUp: Dense, nopeDim: number, layout: HeadLayout): Dense {
  const parts: Dense[] = [];
  for (let head = 0; head < layout.numHeads; head++) {
    const start = kvHeadOf(head, layout) * layout.headDim;
    if (nopeDim > 0) parts.push(rowsOf(keyUp, start, start + layout.headDim));
    parts.push(rowsOf(valueUp, start, start + layout.headDim));
  }
  return stackRows(parts);
}
