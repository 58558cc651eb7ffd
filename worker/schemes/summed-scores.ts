/**
 * Scheme tpla-exact: latent and rotary key are cut by columns, every rank computes all heads' partial scores over its
 * columns, and the sum over ranks is the exact score, before softmax. Each rank then mixes its latent columns with the
 * same weights. Cost per layer: one all-reduce of [heads, tokens, cached tokens]. Near tokens (near-heads.ts) are whole on
 * every rank: their part of the softmax waits for the summed scores of the others, and each rank adds its share of it.
 */
import { invariant } from '../../config/errors.ts';
import type { MlaConfig } from '../../config/model-config.ts';
import { size } from '../../config/shard-plan.ts';
import type { AttentionInputs, Segment } from '../attention-inputs.ts';
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
import type { Kernels, Ops, Tensor } from '../kernels/kernels.ts';
import type { LayerCache } from '../latent-cache.ts';
import { normed } from '../layer.ts';
import { bytesOf, type RankParts } from '../rank-parts.ts';
import type { LayerWeights } from '../weights.ts';
import type { Exchange, RankSeat } from './exchange.ts';
import type { NearWeights } from '../near-weights.ts';
import { linearOffset, mixedBy } from './merged-parts.ts';
import { mlaLayer, rowsOf } from './mla-layer.ts';
import { attendNearTokens, nearQueryOf, nearRows } from './near-heads.ts';

/** The scores of one segment: as programs hold them, and as they travel, without the padding of the cache. */
interface SegmentScores {
  readonly tensor: Tensor; // [heads, length, paddedRows]
  readonly padded: Float32Array; // the same
  readonly rows: number; // heads * length
  readonly paddedRows: number;
  /** Undefined: the model has no near tokens. */
  readonly near: NearParts | undefined;
}

interface NearParts {
  readonly out: Tensor; // [heads, length, v]
  readonly logSumExp: Tensor; // [heads, length]
  readonly visible: Tensor; // [length, 1] zeros
  readonly ones: Tensor; // [paddedRows]
}

export class SummedScores implements Exchange {
  private readonly parts: RankParts;
  private readonly seat: RankSeat;
  private readonly segments: readonly SegmentScores[];
  private readonly packed: Float32Array; // [sum over segments of heads * length * paddedRows] at most
  /** Cached tokens of each segment of the loaded chunk, the chunk's own included. */
  private lengths: readonly number[] = [];

  constructor(parts: RankParts, seat: RankSeat, chunk: Chunk) {
    this.parts = parts;
    this.seat = seat;
    const heads = size(seat.rank.heads);
    const { attention } = parts.model;
    this.segments = chunk.segments.map(({ length, paddedRows }) => ({
      tensor: parts.kernels.allocate('f32', [heads, length, paddedRows]),
      padded: new Float32Array(heads * length * paddedRows),
      rows: heads * length,
      paddedRows,
      near:
        attention.kind === 'mla' && attention.near
          ? allocateNear(parts.kernels, heads, length, paddedRows, attention.valueDim)
          : undefined,
    }));
    this.packed = new Float32Array(this.segments.reduce((sum, { padded }) => sum + padded.length, 0));
  }

  before(ops: Ops, weights: LayerWeights, cache: LayerCache, x: Tensor, inputs: AttentionInputs): readonly Tensor[] {
    const { model } = this.parts;
    const { config, mla, rows } = mlaLayer(model, weights, cache);
    const h = normed(ops, x, weights.attentionNorm, model.normEps);
    writeLatent(ops, model, config, mla, rows, h, inputs);
    const queries = queryParts(ops, model, config, mla, mla.decode, mla.ropeShard, h, inputs);
    const query = cacheQuery(ops, mla.decode, queries); // [tokens, heads, columns]
    if (mla.near !== undefined) this.attendNear(ops, config, mla.near, queries, h, inputs);
    const columns = dim(query, 2);
    return inputs.segments.map((segment) => {
      const keys = ops.slice(rowsOf(ops, rows, segment), 2, dim(rows, 1) - columns, columns); // [1, paddedRows, columns]
      const q = ops.contiguous(ops.permute(ops.slice(query, 0, segment.offset, segment.length), [1, 0, 2]));
      const [heads, length] = [dim(q, 0), dim(q, 1)];
      const scores = ops.matmul(keys, ops.reshape(q, [1, heads * length, columns]));
      return ops.reshape(scores, [heads, length, segment.cacheRows]);
    });
  }

  /** Leaves what near tokens give for the second program. */
  private attendNear(
    ops: Ops,
    config: MlaConfig,
    near: NearWeights,
    query: Query,
    h: Tensor,
    inputs: AttentionInputs,
  ): void {
    const { recent } = inputs;
    invariant(recent !== undefined, 'near tokens without a cache');
    const own = nearRows(ops, config, near, h, inputs);
    if (recent.writesFirst) ops.scatterRows(recent.rows, own, recent.indices);
    const queries = nearQueryOf(ops, config, near, query, inputs);
    inputs.segments.forEach((segment, i) => {
      const [exactly, kept] = [recent.segments[i], this.segments[i]?.near];
      invariant(exactly !== undefined && kept !== undefined, `segment ${i} of ${this.segments.length}`);
      const { heads } = this.seat.rank;
      const part = attendNearTokens(ops, config, near, heads, queries, own, segment, exactly, recent);
      ops.copyTo(kept.out, ops.scale(part.out, near.share));
      const { slope } = near;
      const { nope } = query;
      // What the others' scores lack is taken off these.
      const shift =
        slope === undefined || nope === undefined
          ? undefined
          : linearOffset(ops, config, slope, ops.slice(nope, 1, segment.offset, segment.length));
      const { logSumExp } = part;
      ops.copyTo(kept.logSumExp, shift === undefined ? logSumExp : ops.add(logSumExp, ops.scale(shift, -1)));
    });
    if (!recent.writesFirst) ops.scatterRows(recent.rows, own, recent.indices);
  }

  after(ops: Ops, weights: LayerWeights, cache: LayerCache, inputs: AttentionInputs): Tensor {
    const { config, mla, rows } = mlaLayer(this.parts.model, weights, cache);
    const mixed = inputs.segments.map((segment, i) => {
      const own = this.segments[i];
      invariant(own !== undefined, `segment ${i} of ${this.segments.length}`);
      const far = this.mix(ops, config, mla.decode.valueUp, rows, segment, own.tensor); // [heads, length, v]
      return tokensFirst(ops, own.near === undefined ? far : this.withNear(ops, config, segment, own, own.near, far));
    });
    return biased(ops, outputOfHeads(ops, mla.decode, joined(ops, mixed)), mla.outputBias);
  }

  /** Near tokens are one more column of the softmax. @param far [heads, length, v]  @returns the same */
  private withNear(
    ops: Ops,
    { scoreScale, scoreSoftcap: cap }: MlaConfig,
    { mask }: Segment,
    { tensor }: SegmentScores,
    near: NearParts,
    far: Tensor,
  ): Tensor {
    const [heads, length, rows] = [dim(tensor, 0), dim(tensor, 1), dim(tensor, 2)];
    const scaled = ops.scale(tensor, scoreScale);
    const scores = cap > 0 ? ops.softcap(scaled, cap) : scaled;
    const all = ops.concat([scores, ops.reshape(near.logSumExp, [heads, length, 1])], 2);
    const visible = ops.concat([mask, near.visible], 1);
    const shares = ops.softmax(all, visible, 1); // [heads, length, rows + 1]
    const farShares = ops.contiguous(ops.slice(shares, 2, 0, rows));
    const ofFar = ops.matmul(ops.reshape(ops.slice(near.ones, 0, 0, rows), [1, 1, rows]), farShares);
    const ofNear = ops.contiguous(ops.slice(shares, 2, rows, 1));
    return mixedBy(ops, ops.concat([ofFar, ofNear], 2), far, near.out);
  }

  /** @param rows [.., latentShard + ropeShard]  @returns [heads, length, v] */
  private mix(ops: Ops, config: MlaConfig, valueUp: Tensor, rows: Tensor, segment: Segment, scores: Tensor): Tensor {
    const values = ops.slice(rowsOf(ops, rows, segment), 2, 0, dim(valueUp, 2)); // [1, paddedRows, latentShard]
    const o = ops.attendScores(scores, values, segment.mask, {
      scale: config.scoreScale,
      softcap: config.scoreSoftcap,
    });
    return ops.matmul(valueUp, o);
  }

  load(chunk: Chunk): void {
    this.lengths = chunk.segments.map(({ start, length }) => start + length);
  }

  async run(outputs: readonly Tensor[], label: string): Promise<void> {
    const { kernels } = this.parts;
    let end = 0;
    this.segments.forEach(({ padded, rows, paddedRows }, i) => {
      const [output, length] = [outputs[i], this.lengths[i]];
      invariant(output !== undefined && length !== undefined, `no scores of segment ${i}`);
      kernels.download(output, padded);
      for (let row = 0; row < rows; row++, end += length)
        this.packed.set(padded.subarray(row * paddedRows, row * paddedRows + length), end);
    });
    await this.seat.group.allReduceSum(this.packed.subarray(0, end), label);
    let start = 0;
    this.segments.forEach(({ tensor, padded, rows, paddedRows }, i) => {
      const length = this.lengths[i] ?? 0;
      // Beyond `length` the padding keeps this rank's own scores, which the mask hides.
      for (let row = 0; row < rows; row++, start += length)
        padded.set(this.packed.subarray(start, start + length), row * paddedRows);
      kernels.upload(tensor, bytesOf(padded));
    });
  }

  [Symbol.dispose](): void {
    this.parts.kernels.release(this.segments.flatMap(({ tensor, near }) => [tensor, ...Object.values(near ?? {})]));
  }
}

function allocateNear(kernels: Kernels, heads: number, length: number, rows: number, valueDim: number): NearParts {
  const ones = kernels.allocate('f32', [rows]);
  kernels.upload(ones, bytesOf(new Float32Array(rows).fill(1)));
  return {
    out: kernels.allocate('f32', [heads, length, valueDim]),
    logSumExp: kernels.allocate('f32', [heads, length]),
    visible: kernels.allocate('f32', [length, 1]),
    ones,
  };
}
