/**
 * Scheme tpla with exact tokens: softmax over two parts of the sequence, merged by their log-sum-exp. The first and last
 * tokens are scored with whole latents, the same on every rank, the rest with this rank's latent columns; values are this
 * rank's columns in both. Cost per layer: whole absorbed queries, and sinks + window + tokens more keys.
 */
import { invariant } from '../../config/errors.ts';
import type { MlaConfig, ModelConfig } from '../../config/model-config.ts';
import { size } from '../../config/shard-plan.ts';
import type { AttentionInputs, RecentSegment } from '../attention-inputs.ts';
import {
  biased,
  cacheQuery,
  columnsIn,
  dim,
  joined,
  outputOfHeads,
  queryParts,
  tokensFirst,
  writeLatent,
} from '../attention.ts';
import type { Ops, PartialAttention, Tensor } from '../kernels/kernels.ts';
import type { LayerCache } from '../latent-cache.ts';
import type { MlaWeights } from '../mla-weights.ts';
import { mergedByLogSumExp, moved } from './merged-parts.ts';
import { rowsOf } from './mla-layer.ts';

/** @param h [tokens, hidden] normed  @returns partial delta [tokens, hidden] */
export function attendWindowed(
  ops: Ops,
  model: ModelConfig,
  weights: MlaWeights,
  cache: LayerCache,
  h: Tensor,
  inputs: AttentionInputs,
): Tensor {
  const config = model.attention;
  const { recent } = inputs;
  invariant(
    config.kind === 'mla' && cache.kind === 'latent' && recent !== undefined,
    'exact first and last tokens on a layer without them',
  );
  const { latent, ropeKey } = writeLatent(ops, model, config, weights, cache.rows, h, inputs);
  const whole = ops.concat([latent, ropeKey], 1); // [tokens, r + p]
  const width = dim(whole, 1);
  const wholeRope = { start: 0, end: config.ropeDim };
  const { decode } = weights;
  const queries = queryParts(ops, model, config, weights, decode, wholeRope, h, inputs);
  const { nope } = queries;
  const query = cacheQuery(ops, decode, queries); // [tokens, heads, r + p], or [.., p]
  const oldQuery = decode.old && cacheQuery(ops, decode.old, queries); // [tokens, heads, latentShard + p]
  const parts = inputs.segments.map((segment, i) => {
    const exactly = recent.segments[i];
    invariant(exactly !== undefined, `segment ${i} of ${recent.segments.length}`);
    const ofSegment = (all: Tensor): Tensor =>
      ops.contiguous(ops.permute(ops.slice(all, 0, segment.offset, segment.length), [1, 0, 2]));
    const q = ofSegment(query);
    const own = ops.reshape(ops.slice(whole, 0, segment.offset, segment.length), [1, segment.length, width]);
    const exact = attendExactly(ops, config, weights, q, recent.rows, exactly, own);
    const local = oldQuery === undefined ? columnsOfShard(ops, config, weights, q) : ofSegment(oldQuery);
    const uncorrected = attendShard(ops, config, weights, local, rowsOf(ops, cache.rows, segment), segment.mask);
    const rest =
      decode.old === undefined || nope === undefined
        ? uncorrected
        : moved(ops, config, decode.old, ops.slice(nope, 1, segment.offset, segment.length), uncorrected);
    const o = mergedByLogSumExp(ops, exact, rest, exactly.even);
    return tokensFirst(ops, ops.matmul(weights.decode.valueUp, o)); // [length, heads * v]
  });
  // After the reads above: these rows may hold tokens that the first of this chunk still see.
  ops.scatterRows(recent.rows, whole, recent.indices);
  const delta = biased(ops, outputOfHeads(ops, weights.decode, joined(ops, parts)), weights.outputBias);
  return biased(ops, delta, weights.decodeBias);
}

/** @param q [heads, length, r + p]  @param rows [.., r + p]  @param own [1, length, r + p] */
function attendExactly(
  ops: Ops,
  config: MlaConfig,
  { latentShard }: MlaWeights,
  q: Tensor,
  rows: Tensor,
  segment: RecentSegment,
  own: Tensor,
): PartialAttention {
  const width = dim(rows, 1);
  const kept = ops.slice(ops.reshape(rows, [1, dim(rows, 0), width]), 1, segment.start, segment.rows);
  const tokens = ops.concat([kept, own], 1); // [1, recentRows + length, r + p]
  const keys = ops.slice(tokens, 2, width - dim(q, 2), dim(q, 2));
  const values = columnsIn(ops, tokens, latentShard);
  const options = { scale: config.scoreScale, softcap: config.scoreSoftcap };
  return ops.attendPartial(q, keys, values, segment.mask, options);
}

/** The part of whole queries that a shard can be scored with. @param q [heads, length, r + p]  @returns [heads, length, latentShard + p] */
function columnsOfShard(ops: Ops, { latentDim, ropeDim }: MlaConfig, { latentShard }: MlaWeights, q: Tensor): Tensor {
  if (dim(q, 2) === ropeDim) return q;
  return columnsIn(ops, q, [...latentShard, { start: latentDim, end: latentDim + ropeDim }]);
}

/** @param local [heads, length, latentShard + p]  @param rows [1, cacheRows, latentShard + p] */
function attendShard(
  ops: Ops,
  config: MlaConfig,
  { latentShard }: MlaWeights,
  local: Tensor,
  rows: Tensor,
  mask: Tensor,
): PartialAttention {
  const keys = ops.slice(rows, 2, dim(rows, 2) - dim(local, 2), dim(local, 2));
  const width = latentShard.reduce((sum, range) => sum + size(range), 0);
  const values = ops.slice(rows, 2, 0, width);
  const options = { scale: config.scoreScale, softcap: config.scoreSoftcap };
  return ops.attendPartial(local, keys, values, mask, options);
}
