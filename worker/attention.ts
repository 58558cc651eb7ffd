/**
 * Latent attention of one layer over this rank's shard, in absorbed form: either exact (heads sharded, whole latent) or
 * TPLA (latent sharded; TPLA, arXiv 2508.15881, section 4). New tokens are written to the cache first and read back with
 * the rest, so prefill, blocks and single tokens take the same path. Read next: expanded-heads.ts, schemes/.
 */
import { invariant } from '../config/errors.ts';
import { size, type Range } from '../config/shard-plan.ts';
import type { MlaConfig, ModelConfig } from '../config/model-config.ts';
import { attendLatents } from './attention-batch.ts';
import { expandHeads } from './expanded-heads.ts';
import type { AttentionInputs } from './attention-inputs.ts';
import type { Ops, Tensor } from './kernels/kernels.ts';
import type { LayerCache } from './latent-cache.ts';
import type { MlaProjection, MlaWeights } from './mla-weights.ts';

/**
 * MLA, absorbed: Q_h = qN_h W_UK_h, score = (Q_h . c + qR_h . kR) * s, o_h = softmax(score_h) c, delta = sum_h o_h W_UV_h W_O_h
 * (DeepSeek-V2, arXiv 2405.04434, section 2.1.2). Over a latent shard the same formula is TPLA's.
 * @param h [tokens, hidden] normed
 * @returns partial delta [tokens, hidden]; undefined when this rank has no heads in this phase
 */
export function attendMla(
  ops: Ops,
  model: ModelConfig,
  weights: MlaWeights,
  cache: LayerCache,
  h: Tensor,
  inputs: AttentionInputs,
): Tensor | undefined {
  const config = model.attention;
  invariant(config.kind === 'mla' && cache.kind === 'latent', 'an MLA layer with the weights or cache of a GQA layer');
  const { latent, ropeKey } = writeLatent(ops, model, config, weights, cache.rows, h, inputs);
  if (inputs.staging !== undefined)
    ops.scatterRows(inputs.staging.rows, ops.concat([latent, ropeKey], 1), inputs.staging.indices);
  if (inputs.recent !== undefined)
    ops.scatterRows(inputs.recent.rows, ops.concat([latent, ropeKey], 1), inputs.recent.indices);

  const projection = inputs.staging === undefined ? weights.decode : weights.prefill;
  if (projection === undefined) return undefined;
  const source = inputs.staging?.rows ?? cache.rows; // [rows, latentColumns + p]
  const wholeRope = { start: 0, end: config.ropeDim };
  const query = queryParts(ops, model, config, weights, projection, wholeRope, h, inputs);
  const parts =
    inputs.expanded === undefined
      ? attendAbsorbed(ops, config, projection, query, source, inputs)
      : attendExpanded(ops, config, projection, query, source, inputs, inputs.expanded);
  const delta = biased(ops, outputOfHeads(ops, projection, joined(ops, parts)), weights.outputBias);
  return inputs.staging === undefined ? biased(ops, delta, weights.decodeBias) : delta;
}

/** @param source [rows, latentColumns + p]  @returns for each segment [length, heads * v] */
function attendAbsorbed(
  ops: Ops,
  config: MlaConfig,
  projection: MlaProjection,
  parts: Query,
  source: Tensor,
  inputs: AttentionInputs,
): Tensor[] {
  const { valueUp } = projection;
  const query = cacheQuery(ops, projection, parts); // [tokens, heads, latentColumns + p], or [.., p] when n = 0
  const width = dim(source, 1);
  const queryWidth = dim(query, 2);
  const options = { scale: config.scoreScale, softcap: config.scoreSoftcap };
  return inputs.segments.map((segment) => {
    if (segment.sequences > 1) {
      const mixed = attendLatents(ops, config.ropeDim, query, source, segment, inputs, options);
      return tokensFirst(ops, ops.matmul(valueUp, mixed));
    }
    const start = inputs.staging === undefined ? segment.cacheStart : 0;
    const rows = ops.slice(ops.reshape(source, [1, dim(source, 0), width]), 1, start, segment.cacheRows);
    const keys = ops.slice(rows, 2, width - queryWidth, queryWidth); // [1, cacheRows, queryWidth]
    const values = ops.slice(rows, 2, 0, width - config.ropeDim); // [1, cacheRows, latentColumns]
    const q = ops.permute(ops.slice(query, 0, segment.offset, segment.length), [1, 0, 2]);
    const o = ops.attend(q, keys, values, segment.mask, options); // [heads, length, latentColumns]
    return tokensFirst(ops, ops.matmul(valueUp, o));
  });
}

/**
 * The same over keys and values of each head, expanded from the latents that the chunk reads.
 * @param source whole latents and rotary keys, [rows, r + p]  @param rowsOfSegment which of them each segment reads
 */
function attendExpanded(
  ops: Ops,
  config: MlaConfig,
  projection: MlaProjection,
  { nope, rope }: Query,
  source: Tensor,
  inputs: AttentionInputs,
  rowsOfSegment: readonly Tensor[],
): Tensor[] {
  const { keyUp, valueUp } = projection;
  invariant(nope !== undefined && keyUp !== undefined, 'no keys to expand: the model has no nope part');
  const query = ops.concat([nope, ops.contiguous(ops.permute(rope, [1, 0, 2]))], 2); // [heads, tokens, n + p]
  return inputs.segments.map((segment, i) => {
    const rows = rowsOfSegment[i];
    invariant(rows !== undefined, `no rows for segment ${i} of ${inputs.segments.length}`);
    const { keys, values } = expandHeads(ops, config, keyUp, valueUp, ops.gatherRows(source, rows));
    const q = ops.contiguous(ops.slice(query, 1, segment.offset, segment.length));
    const options = { scale: config.scoreScale, softcap: config.scoreSoftcap };
    return tokensFirst(ops, ops.attend(q, keys, values, segment.mask, options));
  });
}

/**
 * The whole latents and rotary keys of the tokens, of which this rank's columns are written to its cache.
 * [tokens, r], [tokens, p]
 */
export function writeLatent(
  ops: Ops,
  model: ModelConfig,
  config: MlaConfig,
  weights: MlaWeights,
  rows: Tensor,
  h: Tensor,
  inputs: AttentionInputs,
): { latent: Tensor; ropeKey: Tensor } {
  const { raw, latent, ropeKey } = latentOfTokens(ops, model, config, weights, h, inputs);
  const { latentShard, ropeShard, shardNormFactor } = weights;
  const shard =
    shardNormFactor === undefined || inputs.staging !== undefined
      ? columnsIn(ops, latent, latentShard)
      : normedShard(ops, config, columnsIn(ops, raw, latentShard), shardNormFactor);
  const row = ops.concat([shard, columns(ops, ropeKey, ropeShard)], 1);
  ops.scatterRows(rows, row, inputs.cacheRows);
  return { latent, ropeKey };
}

/** The norm cut: by the root mean square of the shard's own columns, times a constant. @param raw [tokens, latentShard] */
function normedShard(ops: Ops, { latentNormEps }: MlaConfig, raw: Tensor, factor: number): Tensor {
  invariant(latentNormEps !== null, 'a norm to cut in a model without one');
  return ops.scale(ops.rmsNorm(ops.contiguous(raw), latentNormEps), factor);
}

/** The whole latent before and after the norm, where the model has one, and the rotated shared key. [tokens, r] twice, [tokens, p] */
export function latentOfTokens(
  ops: Ops,
  model: ModelConfig,
  config: MlaConfig,
  weights: MlaWeights,
  h: Tensor,
  inputs: Pick<AttentionInputs, 'positions'>,
): { raw: Tensor; latent: Tensor; ropeKey: Tensor } {
  const tokens = dim(h, 0);
  const joint = biased(ops, ops.matmul(weights.latentDown, h), weights.latentDownBias); // [tokens, r + p]
  const raw = ops.slice(joint, 1, 0, config.latentDim);
  // The norm's gain is folded into W_UK and W_UV, so that the norm commutes with any rotation of the latent.
  const latent = config.latentNormEps === null ? raw : ops.rmsNorm(ops.contiguous(raw), config.latentNormEps);
  const key = ops.contiguous(ops.slice(joint, 1, config.latentDim, config.ropeDim));
  const ropeKey = rotated(ops, model, weights.frequencies, key, config.ropeDim, inputs);
  return { raw, latent, ropeKey: ops.reshape(ropeKey, [tokens, config.ropeDim]) };
}

/** Queries against cache rows: the absorbed nope part, absent when there is none, then the rotated one. [tokens, heads, columns] */
export function cacheQuery(ops: Ops, { keyUp }: Pick<MlaProjection, 'keyUp'>, { nope, rope }: Query): Tensor {
  return nope === undefined || keyUp === undefined ? rope : absorbed(ops, keyUp, nope, rope);
}

/**
 * @param keyUp W_UK transposed [heads, columns, n]  @param nope [heads, tokens, n]  @param rope [tokens, heads, ropeColumns]
 * @returns [tokens, heads, columns + ropeColumns]
 */
export function absorbed(ops: Ops, keyUp: Tensor, nope: Tensor, rope: Tensor): Tensor {
  return ops.concat([ops.contiguous(ops.permute(ops.matmul(keyUp, nope), [1, 0, 2])), rope], 2);
}

/** Queries before W_UK is absorbed; nope is absent when n = 0. */
export interface Query {
  readonly nope: Tensor | undefined; // [heads, tokens, n]
  readonly rope: Tensor; // rotated, [tokens, heads, ropeColumns]
}

/** The queries of the projection's heads, with these columns of the rotated part. */
export function queryParts(
  ops: Ops,
  model: ModelConfig,
  config: MlaConfig,
  weights: MlaWeights,
  projection: MlaProjection,
  ropeColumns: Range,
  h: Tensor,
  inputs: Pick<AttentionInputs, 'positions'>,
): Query {
  const tokens = dim(h, 0);
  const heads = projection.heads.end - projection.heads.start;
  const headDim = config.nopeDim + config.ropeDim;
  const input = queryInput(ops, config, weights, h);
  const flat = joined(
    ops,
    projection.query.map((part) => ops.matmul(part, input)),
    1,
  );
  const bias =
    weights.queryBias === undefined
      ? undefined
      : ops.slice(weights.queryBias, 0, projection.heads.start * headDim, heads * headDim);
  const q = ops.reshape(biased(ops, flat, bias), [tokens, heads, headDim]);
  const rope = ops.contiguous(ops.slice(q, 2, config.nopeDim, config.ropeDim));
  const whole = rotated(ops, model, weights.frequencies, rope, config.ropeDim, inputs); // [tokens, heads, p]
  const qRope = columns(ops, whole, ropeColumns);
  if (config.nopeDim === 0) return { nope: undefined, rope: qRope };
  const nope = ops.contiguous(ops.permute(ops.slice(q, 2, 0, config.nopeDim), [1, 0, 2])); // [heads, tokens, n]
  return { nope, rope: qRope };
}

/** W_O over all parts of the heads. @param x [tokens, heads * v]  @returns partial [tokens, hidden] */
export function outputOfHeads(ops: Ops, projection: MlaProjection, x: Tensor): Tensor {
  let start = 0;
  const products = projection.output.map((part) => {
    const width = dim(part, 1);
    const own = width === dim(x, 1) ? x : ops.contiguous(ops.slice(x, 1, start, width));
    start += width;
    return ops.matmul(part, own);
  });
  return products.reduce((sum, product) => ops.add(sum, product));
}

function queryInput(ops: Ops, config: MlaConfig, weights: MlaWeights, h: Tensor): Tensor {
  if (weights.queryDown === undefined || config.latentNormEps === null) return h;
  const down = biased(ops, ops.matmul(weights.queryDown.matrix, h), weights.queryDown.bias);
  const low = ops.rmsNorm(down, config.latentNormEps);
  return ops.multiply(low, weights.queryDown.gain); // [tokens, queryLoraDim]
}

/** @param x [tokens, heads * headDim] or [tokens, heads, headDim]  @returns rotated [tokens, heads, headDim] */
export function rotated(
  ops: Ops,
  model: ModelConfig,
  frequencies: Tensor,
  x: Tensor,
  headDim: number,
  inputs: Pick<AttentionInputs, 'positions'>,
): Tensor {
  const tokens = dim(x, 0);
  const heads = x.shape.length === 3 ? dim(x, 1) : dim(x, 1) / headDim;
  return ops.rope(ops.reshape(x, [tokens, heads, headDim]), inputs.positions, frequencies, {
    interleaved: model.rope.interleaved,
    attentionFactor: model.rope.attentionFactor,
  });
}

/** Parts of the last axis side by side; of their parts, at least one. */
export function columnsIn(ops: Ops, x: Tensor, ranges: readonly Range[]): Tensor {
  const parts = ranges.map((range) => columns(ops, x, range));
  return joined(ops, parts, x.shape.length - 1);
}

/** Part of the last axis. */
function columns(ops: Ops, x: Tensor, range: Range): Tensor {
  const axis = x.shape.length - 1;
  return size(range) === dim(x, axis) ? x : ops.slice(x, axis, range.start, size(range));
}

/** [heads, length, width] -> [length, heads * width] */
export function tokensFirst(ops: Ops, x: Tensor): Tensor {
  const [heads, length, width] = [dim(x, 0), dim(x, 1), dim(x, 2)];
  return ops.reshape(ops.contiguous(ops.permute(x, [1, 0, 2])), [length, heads * width]);
}

export function joined(ops: Ops, parts: readonly Tensor[], axis = 0): Tensor {
  const [only] = parts;
  return parts.length === 1 && only !== undefined ? only : ops.concat(parts, axis);
}

export function biased(ops: Ops, x: Tensor, bias: Tensor | undefined): Tensor {
  return bias === undefined ? x : ops.add(x, bias);
}

export function dim(x: Tensor, axis: number): number {
  const length = x.shape[axis];
  invariant(length !== undefined, `axis ${axis} of a tensor of shape [${x.shape.join(', ')}]`);
  return length;
}
