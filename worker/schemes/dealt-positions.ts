/**
 * Scheme dcp: the positions of a sequence are dealt to the ranks in blocks. Every rank computes all heads' attention over
 * the positions it caches, and the parts are merged by their log-sum-exp (online softmax, arXiv 1805.02867, section 3).
 *
 * part = mixed [tokens, heads * v], logSumExp [tokens, heads]: values are mapped by W_UV before they travel, v numbers
 * instead of r. Each rank merges its own heads and multiplies them with its columns of W_O. Cost per layer: one
 * all-gather of heads * (v + 1) numbers per token and rank; the query projections are replicated. Prompts take the same
 * way in blocks, each rank all heads and 1 / worldSize of the positions. Near tokens (near-heads.ts) are one more part,
 * which each rank computes for the heads that it merges and sends nobody.
 */
import { invariant } from '../../config/errors.ts';
import type { MlaConfig } from '../../config/model-config.ts';
import { size, type Range } from '../../config/shard-plan.ts';
import { attendPartOfLatents } from '../attention-batch.ts';
import { tokensIn, type AttentionInputs, type Segment } from '../attention-inputs.ts';
import {
  biased,
  cacheQuery,
  dim,
  joined,
  outputOfHeads,
  queryParts,
  tokensFirst,
  writeLatent,
  type Query,
} from '../attention.ts';
import type { Chunk } from '../chunks.ts';
import type { Ops, PartialAttention, Tensor } from '../kernels/kernels.ts';
import type { LayerCache } from '../latent-cache.ts';
import { normed } from '../layer.ts';
import { bytesOf, type RankParts } from '../rank-parts.ts';
import type { LayerWeights } from '../weights.ts';
import type { Exchange, RankSeat } from './exchange.ts';
import type { NearWeights } from '../near-weights.ts';
import { mlaLayer, rowsOf } from './mla-layer.ts';
import { moved } from './merged-parts.ts';
import { attendNearTokens, nearQueryOf, nearRows } from './near-heads.ts';

export class DealtPositions implements Exchange {
  private readonly parts: RankParts;
  private readonly seat: RankSeat;
  private readonly sizes: PartSizes;
  private readonly merged: Tensor; // [tokens, own heads * v]
  private readonly mergedValues: Float32Array; // the same
  private readonly part: Float32Array; // [tokens, heads * v] then [tokens, heads]
  private readonly gathered: Float32Array; // one part after another
  private readonly lengths: readonly number[];
  private readonly near: LocalPart;

  constructor(parts: RankParts, seat: RankSeat, chunk: Chunk) {
    this.parts = parts;
    this.seat = seat;
    const { attention, numHeads } = parts.model;
    invariant(attention.kind === 'mla', 'dcp is for latent caches');
    const tokens = chunk.tokens.length;
    this.sizes = { worldSize: seat.plan.worldSize, tokens, heads: numHeads, valueDim: attention.valueDim };
    const width = size(seat.rank.prefillHeads) * attention.valueDim;
    this.merged = parts.kernels.allocate('f32', [tokens, width]);
    this.mergedValues = new Float32Array(tokens * width);
    this.near = {
      mixed: new Float32Array(tokens * width),
      logSumExp: new Float32Array(tokens * size(seat.rank.prefillHeads)),
    };
    this.part = new Float32Array(tokens * numHeads * (attention.valueDim + 1));
    this.gathered = new Float32Array(this.part.length * seat.plan.worldSize);
    this.lengths = seat.plan.ranks.map(() => this.part.length);
  }

  before(ops: Ops, weights: LayerWeights, cache: LayerCache, x: Tensor, inputs: AttentionInputs): readonly Tensor[] {
    const { model } = this.parts;
    const { config, mla, rows } = mlaLayer(model, weights, cache);
    const h = normed(ops, x, weights.attentionNorm, model.normEps);
    writeLatent(ops, model, config, mla, rows, h, inputs);
    const queries = queryParts(ops, model, config, mla, mla.decode, mla.ropeShard, h, inputs);
    const query = cacheQuery(ops, mla.decode, queries); // [tokens, heads, columns]
    const segments = inputs.segments.map((segment) => {
      const part = this.attendHeld(ops, config, query, rows, segment, inputs); // [heads, tokens, r], [heads, tokens]
      const { slope } = mla.near ?? {};
      const { out, logSumExp } =
        slope === undefined || queries.nope === undefined
          ? part
          : moved(ops, config, { slope }, ops.slice(queries.nope, 1, segment.offset, tokensIn(segment)), part);
      return {
        mixed: tokensFirst(ops, ops.matmul(mla.decode.valueUp, out)), // [tokens, heads * v]
        logSumExp: ops.contiguous(ops.permute(logSumExp, [1, 0])), // [tokens, heads]
      };
    });
    const outputs = [
      joined(
        ops,
        segments.map(({ mixed }) => mixed),
      ),
      joined(
        ops,
        segments.map(({ logSumExp }) => logSumExp),
      ),
    ];
    return mla.near === undefined
      ? outputs
      : [...outputs, ...this.nearTokens(ops, config, mla.near, queries, h, inputs)];
  }

  /** Over the rows that this rank holds. out [heads, length * sequences, r], logSumExp [heads, length * sequences] */
  private attendHeld(
    ops: Ops,
    config: MlaConfig,
    query: Tensor, // [tokens, heads, columns]
    rows: Tensor,
    segment: Segment,
    inputs: AttentionInputs,
  ): PartialAttention {
    const options = { scale: config.scoreScale, softcap: config.scoreSoftcap };
    if (segment.sequences > 1) return attendPartOfLatents(ops, config.ropeDim, query, rows, segment, inputs, options);
    const columns = dim(query, 2);
    const held = rowsOf(ops, rows, segment);
    const keys = ops.slice(held, 2, dim(rows, 1) - columns, columns); // [1, paddedRows, columns]
    const values = ops.slice(held, 2, 0, config.latentDim); // [1, paddedRows, r]
    const q = ops.permute(ops.slice(query, 0, segment.offset, segment.length), [1, 0, 2]);
    return ops.attendPartial(q, keys, values, segment.mask, options);
  }

  /** [tokens, own heads * v], [tokens, own heads]; the chunk's rows are kept for later ones. */
  private nearTokens(
    ops: Ops,
    config: MlaConfig,
    near: NearWeights,
    query: Query,
    h: Tensor,
    inputs: AttentionInputs,
  ): Tensor[] {
    const { recent } = inputs;
    invariant(recent !== undefined, 'near tokens without a cache');
    const { prefillHeads } = this.seat.rank;
    if (size(prefillHeads) === 0) return [];
    const own = nearRows(ops, config, near, h, inputs);
    if (recent.writesFirst) ops.scatterRows(recent.rows, own, recent.indices);
    const all = nearQueryOf(ops, config, near, query, inputs); // [heads, tokens, d]
    const nearQuery = ops.contiguous(ops.slice(all, 0, prefillHeads.start, size(prefillHeads)));
    const parts = inputs.segments.map((segment, i) => {
      const exactly = recent.segments[i];
      invariant(exactly !== undefined, `segment ${i} of ${recent.segments.length}`);
      const { out, logSumExp } = attendNearTokens(
        ops,
        config,
        near,
        prefillHeads,
        nearQuery,
        own,
        segment,
        exactly,
        recent,
      );
      return { mixed: tokensFirst(ops, out), logSumExp: ops.contiguous(ops.permute(logSumExp, [1, 0])) };
    });
    if (!recent.writesFirst) ops.scatterRows(recent.rows, own, recent.indices);
    const joinedParts = (of: 'mixed' | 'logSumExp'): Tensor =>
      joined(
        ops,
        parts.map((part) => part[of]),
      );
    return [joinedParts('mixed'), joinedParts('logSumExp')];
  }

  after(ops: Ops, weights: LayerWeights, cache: LayerCache): Tensor | undefined {
    const { mla } = mlaLayer(this.parts.model, weights, cache);
    if (size(this.seat.rank.prefillHeads) === 0) return undefined;
    return biased(ops, outputOfHeads(ops, mla.decode, this.merged), mla.outputBias);
  }

  /** Which positions a rank sees is in the masks. */
  load(): void {}

  async run([mixed, logSumExp, nearMixed, nearLogSumExp]: readonly Tensor[], label: string): Promise<void> {
    invariant(mixed !== undefined && logSumExp !== undefined, 'attention over dealt positions has two outputs');
    const { tokens, heads, valueDim } = this.sizes;
    const { kernels } = this.parts;
    kernels.download(mixed, this.part.subarray(0, tokens * heads * valueDim));
    kernels.download(logSumExp, this.part.subarray(tokens * heads * valueDim));
    await this.seat.group.allGather(this.part, this.lengths, this.gathered, label);
    const local = nearMixed && nearLogSumExp && this.downloadNear(nearMixed, nearLogSumExp);
    mergeParts(this.gathered, this.sizes, this.seat.rank.prefillHeads, this.mergedValues, local);
    kernels.upload(this.merged, bytesOf(this.mergedValues));
  }

  private downloadNear(mixed: Tensor, logSumExp: Tensor): LocalPart {
    const { near } = this;
    this.parts.kernels.download(mixed, near.mixed);
    this.parts.kernels.download(logSumExp, near.logSumExp);
    return near;
  }

  [Symbol.dispose](): void {
    this.parts.kernels.release([this.merged]);
  }
}

export interface PartSizes {
  readonly worldSize: number;
  readonly tokens: number;
  readonly heads: number;
  readonly valueDim: number;
}

/** A part that this rank has for its own heads only. */
export interface LocalPart {
  readonly mixed: Float32Array; // [tokens, own heads * v]
  readonly logSumExp: Float32Array; // [tokens, own heads]
}

/** Far below any score, above what stands for the logarithm of an empty sum. */
const nothingVisible = -1e29;

/**
 * Softmax over all positions from the parts: each part counts exp(logSumExp), relative to the largest. A part that sees
 * no position counts nothing, whatever its numbers are.
 * @param gathered parts, each mixed [tokens, heads * v] then logSumExp [tokens, heads]
 * @param own the heads to merge  @param out [tokens, own heads * v], overwritten  @param local one more part
 */
export function mergeParts(
  gathered: Float32Array,
  sizes: PartSizes,
  own: Range,
  out: Float32Array,
  local?: LocalPart,
): void {
  const { worldSize, tokens, heads, valueDim } = sizes;
  const partLength = tokens * heads * (valueDim + 1);
  const logSumExps = tokens * heads * valueDim;
  let to = 0;
  for (let t = 0; t < tokens; t++)
    for (let h = own.start; h < own.end; h++, to += valueDim) {
      const row = t * heads + h;
      const localLogSumExp = local?.logSumExp[to / valueDim] ?? -Infinity;
      let largest = localLogSumExp;
      for (let rank = 0; rank < worldSize; rank++)
        largest = Math.max(largest, gathered[rank * partLength + logSumExps + row] ?? 0);
      out.fill(0, to, to + valueDim);
      let total = 0;
      const addPart = (values: Float32Array, from: number, logSumExp: number): void => {
        if (logSumExp < nothingVisible) return;
        const weight = Math.exp(logSumExp - largest);
        total += weight;
        for (let d = 0; d < valueDim; d++) out[to + d] = (out[to + d] ?? 0) + weight * (values[from + d] ?? 0);
      };
      for (let rank = 0; rank < worldSize; rank++)
        addPart(gathered, rank * partLength + row * valueDim, gathered[rank * partLength + logSumExps + row] ?? 0);
      if (local !== undefined) addPart(local.mixed, to, localLogSumExp);
      if (total > 0) for (let d = 0; d < valueDim; d++) out[to + d] = (out[to + d] ?? 0) / total;
    }
}
