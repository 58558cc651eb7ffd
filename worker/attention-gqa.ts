/**
 * Attention with a key-value cache per head, heads sharded: a rank has the query heads of its plan and the KV heads that
 * those read, two ranks perhaps the same one. Read next: attention.ts (inputs, and latent attention), value-cache.ts.
 */
import { invariant } from '../config/errors.ts';
import type { ModelConfig } from '../config/model-config.ts';
import type { AttentionInputs } from './attention-inputs.ts';
import { biased, dim, joined, rotated, tokensFirst } from './attention.ts';
import { attendSequences } from './attention-batch.ts';
import type { AttendOptions, Ops, Tensor } from './kernels/kernels.ts';
import type { LayerCache } from './latent-cache.ts';
import { headsOfRows, headsOfValues, writeValues } from './value-cache.ts';
import type { GqaWeights } from './weights.ts';

/** @param h [tokens, hidden] normed  @returns partial delta [tokens, hidden] */
export function attendGqa(
  ops: Ops,
  model: ModelConfig,
  weights: GqaWeights,
  cache: LayerCache,
  h: Tensor,
  inputs: AttentionInputs,
): Tensor {
  const config = model.attention;
  invariant(
    config.kind === 'gqa' && cache.kind === 'keyValue',
    'a GQA layer with the weights or cache of an MLA layer',
  );
  const tokens = dim(h, 0);
  const q = rotated(
    ops,
    model,
    weights.frequencies,
    headNormed(ops, model, biased(ops, ops.matmul(weights.query, h), weights.queryBias), weights.headNorms?.query),
    config.headDim,
    inputs,
  );
  const k = rotated(
    ops,
    model,
    weights.frequencies,
    headNormed(ops, model, biased(ops, ops.matmul(weights.key, h), weights.keyBias), weights.headNorms?.key),
    config.headDim,
    inputs,
  );
  const v = biased(ops, ops.matmul(weights.value, h), weights.valueBias); // [tokens, localKvHeads * headDim]
  ops.scatterRows(cache.keys, ops.reshape(k, [tokens, dim(v, 1)]), inputs.cacheRows);
  writeValues(ops, cache.values, v, inputs);
  const options = { scale: config.scoreScale, softcap: config.scoreSoftcap };
  const parts = inputs.segments.map((segment) => {
    if (segment.sequences > 1)
      return joined(ops, attendSequences(ops, weights.queriesOfKvHead, cache, q, segment, inputs, options), 1);
    const queries = ops.permute(ops.slice(q, 0, segment.offset, segment.length), [1, 0, 2]); // [localHeads, length, headDim]
    const keys = headsOfRows(ops, cache.keys, segment, config.headDim); // [localKvHeads, cacheRows, headDim]
    const values = headsOfValues(ops, cache.values, inputs.rowsPerSlot, segment, dim(v, 1), config.headDim);
    return tokensFirst(ops, attendByKvHead(ops, options, weights.queriesOfKvHead, queries, keys, values, segment.mask));
  });
  return biased(ops, ops.matmul(weights.output, joined(ops, parts)), weights.outputBias);
}

/** One attend per KV head when the local heads do not share KV heads evenly, one for all of them otherwise. */
function attendByKvHead(
  ops: Ops,
  options: AttendOptions,
  queriesOfKvHead: readonly number[],
  q: Tensor, // [localHeads, length, headDim]
  keys: Tensor, // [localKvHeads, cacheRows, headDim]
  values: Tensor,
  mask: Tensor,
): Tensor {
  if (new Set(queriesOfKvHead).size === 1) return ops.attend(q, keys, values, mask, options);
  let start = 0;
  const parts = queriesOfKvHead.map((count, kvHead) => {
    const part = ops.slice(q, 0, start, count);
    start += count;
    return ops.attend(part, ops.slice(keys, 0, kvHead, 1), ops.slice(values, 0, kvHead, 1), mask, options);
  });
  return ops.concat(parts, 0);
}

/** Each head normed by itself, before rope. @param x [tokens, heads * headDim]  @param gain [headDim]  @returns [tokens, heads, headDim] */
function headNormed(ops: Ops, model: ModelConfig, x: Tensor, gain: Tensor | undefined): Tensor {
  if (gain === undefined) return x;
  const headDim = dim(gain, 0);
  const heads = ops.reshape(x, [dim(x, 0), dim(x, 1) / headDim, headDim]);
  return ops.multiply(ops.rmsNorm(heads, model.normEps), gain);
}
