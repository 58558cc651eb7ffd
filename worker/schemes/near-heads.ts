/**
 * Attention of a converted model whose first and last tokens keep the source's keys and values (NearTokens): one softmax
 * over both parts of the sequence, near tokens scored by the heads' own keys under the source's RoPE, all others by their
 * latents; merged by log-sum-exp (online softmax, arXiv 1805.02867, section 3). Near keys and values lie in RecentTokens,
 * a row [keys | values] for each token. Cost per layer: W_K and W_V of the source, and sinks + window + tokens more keys.
 * Read next: recent-tokens.ts, docs/conversion.md (step 7).
 */
import { invariant } from '../../config/errors.ts';
import type { MlaConfig, ModelConfig, NearTokens } from '../../config/model-config.ts';
import { size, type Range } from '../../config/shard-plan.ts';
import {
  tokensIn,
  type AttentionInputs,
  type RecentInputs,
  type RecentSegment,
  type Segment,
} from '../attention-inputs.ts';
import { attendPartOfLatents, partOfHeads } from '../attention-batch.ts';
import {
  absorbed,
  biased,
  dim,
  joined,
  outputOfHeads,
  queryParts,
  tokensFirst,
  writeLatent,
  type Query,
} from '../attention.ts';
import { expandHeads } from '../expanded-heads.ts';
import type { Ops, PartialAttention, Tensor } from '../kernels/kernels.ts';
import type { LayerCache } from '../latent-cache.ts';
import type { MlaProjection, MlaWeights } from '../mla-weights.ts';
import type { NearWeights } from '../near-weights.ts';
import { mergedByLogSumExp, moved } from './merged-parts.ts';

/** @param h [tokens, hidden] normed  @returns partial delta [tokens, hidden]; undefined: this rank has no heads in this phase */
export function attendNear(
  ops: Ops,
  model: ModelConfig,
  weights: MlaWeights,
  near: NearWeights,
  cache: LayerCache,
  h: Tensor,
  inputs: AttentionInputs,
): Tensor | undefined {
  const config = model.attention;
  const { recent, staging } = inputs;
  invariant(config.kind === 'mla' && cache.kind === 'latent' && recent !== undefined, 'near tokens without a cache');
  const { latent, ropeKey } = writeLatent(ops, model, config, weights, cache.rows, h, inputs);
  if (staging !== undefined) ops.scatterRows(staging.rows, ops.concat([latent, ropeKey], 1), staging.indices);
  const own = nearRows(ops, config, near, h, inputs);
  const projection = staging === undefined ? weights.decode : weights.prefill;
  if (projection === undefined) {
    ops.scatterRows(recent.rows, own, recent.indices);
    return undefined;
  }
  const query = queryParts(ops, model, config, weights, projection, { start: 0, end: config.ropeDim }, h, inputs);
  if (recent.writesFirst) ops.scatterRows(recent.rows, own, recent.indices);
  const nearQuery = nearQueryOf(ops, config, near, query, inputs);
  const source = staging?.rows ?? cache.rows;
  const { start, end } = projection.heads;
  const slope = near.slope && ops.slice(near.slope, 0, start, end - start);
  // Ranks that cut the latent all attend to near tokens with the same heads: each adds its part of what they give.
  const part = staging === undefined ? near.share : 1;
  const outputs = inputs.segments.map((segment, i) => {
    const exactly = recent.segments[i];
    invariant(exactly !== undefined, `segment ${i} of ${recent.segments.length}`);
    const exact = attendNearTokens(ops, config, near, projection.heads, nearQuery, own, segment, exactly, recent);
    const shared = part === 1 ? exact : { ...exact, out: ops.scale(exact.out, part) };
    const far = attendFarTokens(
      ops,
      config,
      projection,
      slope,
      query,
      source,
      segment,
      inputs,
      inputs.expanded?.[i],
      staging !== undefined,
    );
    return tokensFirst(ops, mergedByLogSumExp(ops, shared, far, exactly.even)); // [length * sequences, heads * v]
  });
  // After the reads above: these rows may hold tokens that the first of this chunk still see.
  if (!recent.writesFirst) ops.scatterRows(recent.rows, own, recent.indices);
  const delta = biased(ops, outputOfHeads(ops, projection, joined(ops, outputs)), weights.outputBias);
  return staging === undefined ? biased(ops, delta, weights.decodeBias) : delta;
}

/** Rotated keys, then values, of the rank's KV heads. [tokens, 2 G d] */
export function nearRows(
  ops: Ops,
  config: MlaConfig,
  near: NearWeights,
  h: Tensor,
  inputs: Pick<AttentionInputs, 'positions'>,
): Tensor {
  const keys = biased(ops, ops.matmul(near.key, h), near.keyBias);
  const values = biased(ops, ops.matmul(near.value, h), near.valueBias);
  const [tokens, width] = [dim(h, 0), dim(values, 1)];
  const perHead = ops.reshape(keys, [tokens, width / config.nopeDim, config.nopeDim]);
  return ops.concat([ops.reshape(rotatedBySource(ops, config, near, perHead, inputs), [tokens, width]), values], 1);
}

/** Queries before absorption are the source's: rotated as the source does. [heads, tokens, d] */
export function nearQueryOf(
  ops: Ops,
  config: MlaConfig,
  near: NearWeights,
  { nope }: Query,
  inputs: Pick<AttentionInputs, 'positions'>,
): Tensor {
  invariant(nope !== undefined, 'near tokens in a model without a nope part');
  const tokensBefore = ops.contiguous(ops.permute(nope, [1, 0, 2])); // [tokens, heads, d]
  return ops.contiguous(ops.permute(rotatedBySource(ops, config, near, tokensBefore, inputs), [1, 0, 2]));
}

/** @param x [tokens, heads, d] */
function rotatedBySource(
  ops: Ops,
  config: MlaConfig,
  { frequencies }: NearWeights,
  x: Tensor,
  { positions }: Pick<AttentionInputs, 'positions'>,
): Tensor {
  const { attentionFactor } = tokensOf(config);
  return ops.rope(x, positions, frequencies, { interleaved: false, attentionFactor });
}

/**
 * @param heads of `query`, counted from the first local one  @param query [heads, tokens, d]
 * @param own rows of the chunk's tokens
 * @returns out [heads, length * sequences, d], logSumExp [heads, length * sequences]
 */
export function attendNearTokens(
  ops: Ops,
  config: MlaConfig,
  near: NearWeights,
  heads: Range,
  query: Tensor,
  own: Tensor,
  segment: Segment,
  exactly: RecentSegment,
  { rows, writesFirst }: Pick<RecentInputs, 'rows' | 'writesFirst'>,
): PartialAttention {
  const { nopeDim: headDim } = config;
  const width = dim(rows, 1);
  const { offset, sequences } = segment;
  const ofSlots = ops.slice(rows, 0, exactly.start, sequences * exactly.rows);
  const kept = ops.reshape(ofSlots, [sequences, exactly.rows, width]);
  const ofChunk = (): Tensor => ops.reshape(ops.slice(own, 0, offset, segment.length), [1, segment.length, width]);
  const tokens = writesFirst ? kept : ops.concat([kept, ofChunk()], 1); // [sequences, rows (+ length), 2 G d]
  const options = { scale: config.scoreScale, softcap: config.scoreSoftcap };
  const ofSegment = ops.contiguous(ops.slice(query, 1, offset, tokensIn(segment))); // [heads, length * sequences, d]
  const runs = near.queriesOfKvHead(heads);
  // Heads of equally many queries each are one product.
  if (
    sequences === 1 &&
    runs.length * headDim * 2 === width &&
    new Set(runs.map(({ queries }) => size(queries))).size === 1
  ) {
    const perHead = ops.permute(ops.reshape(tokens, [dim(tokens, 1), 2 * runs.length, headDim]), [1, 0, 2]);
    const keys = ops.slice(perHead, 0, 0, runs.length); // [G, rows (+ length), d]
    const values = ops.slice(perHead, 0, runs.length, runs.length);
    return ops.attendPartial(ofSegment, keys, values, exactly.mask, options);
  }
  const parts = runs.map(({ kvHead, queries }) => {
    const q = ops.slice(ofSegment, 0, queries.start, size(queries));
    const keys = ops.slice(tokens, 2, kvHead * headDim, headDim);
    const values = ops.slice(tokens, 2, width / 2 + kvHead * headDim, headDim);
    if (sequences === 1) return ops.attendPartial(q, keys, values, exactly.mask, options);
    const bySequence = ops.reshape(ops.contiguous(ops.permute(q, [1, 0, 2])), [sequences * size(queries), 1, headDim]);
    return partOfHeads(ops, segment, ops.attendPartial(bySequence, keys, values, exactly.mask, options));
  });
  return {
    out: joined(
      ops,
      parts.map(({ out }) => out),
    ),
    logSumExp: joined(
      ops,
      parts.map(({ logSumExp }) => logSumExp),
    ),
  };
}

/** @returns out [heads, length * sequences, v], logSumExp [heads, length * sequences] */
function attendFarTokens(
  ops: Ops,
  config: MlaConfig,
  { keyUp, valueUp, old }: MlaProjection,
  slope: Tensor | undefined, // [heads, 1, n]
  { nope, rope }: Query,
  source: Tensor,
  segment: Segment,
  slots: Pick<AttentionInputs, 'rowsPerSlot'>,
  expanded: Tensor | undefined,
  staged: boolean,
): PartialAttention {
  invariant(nope !== undefined && keyUp !== undefined, 'near tokens in a model without a nope part');
  const own = ops.slice(nope, 1, segment.offset, tokensIn(segment));
  const offset = (part: PartialAttention): PartialAttention => {
    const centred = slope === undefined ? part : moved(ops, config, { slope }, own, part);
    return old === undefined ? centred : moved(ops, config, old, own, centred);
  };
  const options = { scale: config.scoreScale, softcap: config.scoreSoftcap };
  const ofSegment = (x: Tensor): Tensor => ops.contiguous(ops.slice(x, 1, segment.offset, segment.length));
  if (expanded !== undefined) {
    const { keys, values } = expandHeads(ops, config, keyUp, valueUp, ops.gatherRows(source, expanded));
    const q = ops.concat([nope, ops.contiguous(ops.permute(rope, [1, 0, 2]))], 2); // [heads, tokens, n + p]
    return offset(ops.attendPartial(ofSegment(q), keys, values, segment.mask, options));
  }
  const query = absorbed(ops, keyUp, nope, rope); // [tokens, heads, columns + p]
  if (segment.sequences > 1) {
    const part = attendPartOfLatents(ops, config.ropeDim, query, source, segment, slots, options);
    return offset({ out: ops.matmul(valueUp, part.out), logSumExp: part.logSumExp });
  }
  const q = ops.permute(query, [1, 0, 2]); // [heads, tokens, columns + p]
  const width = dim(source, 1);
  const start = staged ? 0 : segment.cacheStart;
  const keys = ops.slice(ops.reshape(source, [1, dim(source, 0), width]), 1, start, segment.cacheRows);
  const values = ops.slice(keys, 2, 0, width - config.ropeDim);
  const { out, logSumExp } = ops.attendPartial(ofSegment(q), keys, values, segment.mask, options);
  return offset({ out: ops.matmul(valueUp, out), logSumExp });
}

function tokensOf({ near }: MlaConfig): NearTokens {
  invariant(near !== undefined, 'a layer with near tokens in a model without them');
  return near;
}
