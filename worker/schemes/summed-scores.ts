/**
 * Scheme tpla-exact: latent and rotary key are cut by columns, every rank computes all heads' partial scores over its
 * columns, and the sum over ranks is the exact score, before softmax. Each rank then mixes its latent columns with the
 * same weights. Cost per layer: one all-reduce of [heads, tokens, cached tokens].
 */
import { invariant } from '../../config/errors.ts';
import type { MlaConfig } from '../../config/model-config.ts';
import { size } from '../../config/shard-plan.ts';
import type { AttentionInputs, Segment } from '../attention-inputs.ts';
import { biased, dim, joined, outputOfHeads, queryOfTokens, tokensFirst, writeLatent } from '../attention.ts';
import type { Chunk } from '../chunks.ts';
import type { Ops, Tensor } from '../kernels/kernels.ts';
import type { LayerCache } from '../latent-cache.ts';
import { normed } from '../layer.ts';
import { bytesOf, type RankParts } from '../rank-parts.ts';
import type { LayerWeights } from '../weights.ts';
import type { Exchange, RankSeat } from './exchange.ts';
import { mlaLayer, rowsOf } from './mla-layer.ts';

/** The scores of one segment: as programs hold them, and as they travel, without the padding of the cache. */
interface SegmentScores {
  readonly tensor: Tensor; // [heads, length, paddedRows]
  readonly padded: Float32Array; // the same
  readonly rows: number; // heads * length
  readonly paddedRows: number;
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
    this.segments = chunk.segments.map(({ length, paddedRows }) => ({
      tensor: parts.kernels.allocate('f32', [heads, length, paddedRows]),
      padded: new Float32Array(heads * length * paddedRows),
      rows: heads * length,
      paddedRows,
    }));
    this.packed = new Float32Array(this.segments.reduce((sum, { padded }) => sum + padded.length, 0));
  }

  before(ops: Ops, weights: LayerWeights, cache: LayerCache, x: Tensor, inputs: AttentionInputs): readonly Tensor[] {
    const { model } = this.parts;
    const { config, mla, rows } = mlaLayer(model, weights, cache);
    const h = normed(ops, x, weights.attentionNorm, model.normEps);
    writeLatent(ops, model, config, mla, rows, h, inputs);
    const query = queryOfTokens(ops, model, config, mla, mla.decode, mla.ropeShard, h, inputs); // [tokens, heads, columns]
    const columns = dim(query, 2);
    return inputs.segments.map((segment) => {
      const keys = ops.slice(rowsOf(ops, rows, segment), 2, dim(rows, 1) - columns, columns); // [1, paddedRows, columns]
      const q = ops.contiguous(ops.permute(ops.slice(query, 0, segment.offset, segment.length), [1, 0, 2]));
      const [heads, length] = [dim(q, 0), dim(q, 1)];
      const scores = ops.matmul(keys, ops.reshape(q, [1, heads * length, columns]));
      return ops.reshape(scores, [heads, length, segment.cacheRows]);
    });
  }

  after(ops: Ops, weights: LayerWeights, cache: LayerCache, inputs: AttentionInputs): Tensor {
    const { config, mla, rows } = mlaLayer(this.parts.model, weights, cache);
    const mixed = inputs.segments.map((segment, i) => {
      const scores = this.segments[i]?.tensor;
      invariant(scores !== undefined, `segment ${i} of ${this.segments.length}`);
      return this.mix(ops, config, mla.decode.valueUp, rows, segment, scores);
    });
    return biased(ops, outputOfHeads(ops, mla.decode, joined(ops, mixed)), mla.outputBias);
  }

  /** @param rows [.., latentShard + ropeShard]  @returns [length, heads * v] */
  private mix(ops: Ops, config: MlaConfig, valueUp: Tensor, rows: Tensor, segment: Segment, scores: Tensor): Tensor {
    const values = ops.slice(rowsOf(ops, rows, segment), 2, 0, dim(valueUp, 2)); // [1, paddedRows, latentShard]
    const o = ops.attendScores(scores, values, segment.mask, {
      scale: config.scoreScale,
      softcap: config.scoreSoftcap,
    });
    return tokensFirst(ops, ops.matmul(valueUp, o));
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
    this.parts.kernels.release(this.segments.map(({ tensor }) => tensor));
  }
}
