/**
 * Near tokens (NearTokens) in a refit: the converted layer attends to them by the source's keys and values on the
 * converted stream, in one softmax with the latents of the others. Formulas: docs/conversion.md, step 7.
 * Read next: refit-programs.ts.
 */
import type { GqaConfig, ModelConfig } from '../../config/model-config.ts';
import { size, type ExactTokens } from '../../config/shard-plan.ts';
import type { Kernels, Ops, Tensor } from '../kernels/kernels.ts';
import { bytesOf } from '../rank-parts.ts';
import { byHead, dim } from './operation-helpers.ts';
import type { QueryBlock } from './query-blocks.ts';
import type { WholeLayer } from './whole-layer.ts';

export class NearPart implements Disposable {
  readonly tokens: ExactTokens;
  /** Mean value of every KV head, which the output's bias has for all tokens; uploaded by the session. [G d] */
  readonly meanValue: Tensor;
  /** What a mean key adds to all scores by latents, likewise. [H, 1, d] */
  readonly slope: Tensor;
  /** What near tokens give every head. [T, H d] */
  readonly heads: Tensor;
  private readonly kernels: Kernels;
  private readonly model: ModelConfig;
  private readonly attention: GqaConfig;
  private readonly layer: WholeLayer;
  private readonly keys: Tensor; // [G, T, d] rotated
  private readonly valuesT: Tensor; // [G, d, T] less the mean value
  private readonly queries: Tensor; // [H, T, d] rotated
  private readonly frequencies: Tensor; // [d / 2]
  private readonly ones: Tensor; // [1, T, 1]
  private readonly rest: Float32Array; // [T, H d]

  constructor(
    kernels: Kernels,
    model: ModelConfig,
    attention: GqaConfig,
    layer: WholeLayer,
    tokens: ExactTokens,
    length: number,
  ) {
    this.kernels = kernels;
    this.model = model;
    this.attention = attention;
    this.layer = layer;
    this.tokens = tokens;
    const { headDim, numKvHeads } = attention;
    this.rest = new Float32Array(length * model.numHeads * headDim);
    this.meanValue = kernels.allocate('f32', [numKvHeads * headDim]);
    this.slope = kernels.allocate('f32', [model.numHeads, 1, headDim]);
    this.ones = kernels.allocate('f32', [1, length, 1]);
    kernels.upload(this.ones, bytesOf(new Float32Array(length).fill(1)));
    this.heads = kernels.allocate('f32', [length, model.numHeads * headDim]);
    this.keys = kernels.allocate('f32', [numKvHeads, length, headDim]);
    this.valuesT = kernels.allocate('f32', [numKvHeads, headDim, length]);
    this.queries = kernels.allocate('f32', [model.numHeads, length, headDim]);
    this.frequencies = kernels.allocate('f32', [headDim / 2]);
    kernels.upload(this.frequencies, bytesOf(Float32Array.from(model.rope.frequencies)));
  }

  /** @param h [T, D] normed  @param queries of the heads before RoPE [T, H, d]  @param positions [T] i32 */
  project(ops: Ops, h: Tensor, queries: Tensor, positions: Tensor): void {
    const { layer } = this;
    const { headDim, numKvHeads } = this.attention;
    const tokens = dim(h, 0);
    const { attentionFactor } = this.model.rope;
    const rotated = (x: Tensor): Tensor =>
      byHead(ops, ops.rope(x, positions, this.frequencies, { interleaved: false, attentionFactor }));
    ops.copyTo(this.queries, rotated(ops.contiguous(queries)));
    const keys = ops.add(ops.matmul(layer.key, h), layer.keyBias);
    ops.copyTo(this.keys, rotated(ops.reshape(keys, [tokens, numKvHeads, headDim])));
    const values = ops.add(ops.add(ops.matmul(layer.value, h), layer.valueBias), ops.scale(this.meanValue, -1));
    const perHead = ops.reshape(values, [tokens, numKvHeads, headDim]);
    ops.copyTo(this.valuesT, ops.contiguous(ops.permute(perHead, [1, 2, 0])));
  }

  /**
   * Shares of the block's queries over all its columns: keys before the block's end, then near tokens.
   * @param nope the block's queries before RoPE [1, m, d]
   * @param far scores of the former, before scale and cap [1, m, t]  @returns the far shares [1, m, t]
   */
  attend(ops: Ops, head: number, block: QueryBlock, nope: Tensor, far: Tensor): Tensor {
    const { scoreScale, scoreSoftcap: cap, numKvHeads } = this.attention;
    const kvHead = Math.floor((head * numKvHeads) / this.model.numHeads);
    const { start, end } = block.queries;
    const rows = end - start;
    const own = ops.contiguous(ops.slice(ops.slice(this.queries, 0, head, 1), 1, start, rows));
    const raw = ops.matmul(this.columns(ops, this.keys, kvHead, 1, block), own);
    // What the others' scores lack is taken off these.
    const lacking = ops.matmul(ops.slice(this.slope, 0, head, 1), nope); // [1, m, 1]
    const shift = ops.matmul(ops.slice(this.ones, 1, 0, dim(raw, 2)), lacking); // [1, m, near], rows of one number
    const scores = ops.concat([far, ops.add(raw, ops.scale(shift, -1))], 2);
    const shares =
      cap > 0
        ? ops.softmax(ops.softcap(ops.scale(scores, scoreScale), cap), block.mask, 1)
        : ops.softmax(scores, block.mask, scoreScale);
    const nearShares = ops.contiguous(ops.slice(shares, 2, end, dim(shares, 2) - end));
    const out = ops.matmul(this.columns(ops, this.valuesT, kvHead, 2, block), nearShares); // [1, m, d]
    const place = ops.slice(ops.slice(this.heads, 0, start, rows), 1, head * dim(out, 2), dim(out, 2));
    ops.copyTo(place, ops.reshape(out, [rows, dim(out, 2)]));
    return ops.contiguous(ops.slice(shares, 2, 0, end));
  }

  /**
   * After `attend` of all blocks.
   * @param targets [T, H d]  @param given what near tokens give, overwritten [T, H d]
   * @returns targets less that, valid until the next call
   */
  takeFrom(targets: Float32Array, given: Float32Array): Float32Array {
    this.kernels.download(this.heads, given);
    for (let i = 0; i < given.length; i++) this.rest[i] = (targets[i] ?? 0) - (given[i] ?? 0);
    return this.rest;
  }

  [Symbol.dispose](): void {
    const { meanValue, slope, ones, heads, keys, valuesT, queries, frequencies } = this;
    this.kernels.release([meanValue, slope, ones, heads, keys, valuesT, queries, frequencies]);
  }

  /** The block's near tokens along an axis of one KV head. */
  private columns(ops: Ops, x: Tensor, kvHead: number, axis: number, { near }: QueryBlock): Tensor {
    const all = ops.slice(x, 0, kvHead, 1);
    const window = ops.contiguous(ops.slice(all, axis, near.window.start, size(near.window)));
    if (near.sinks === 0) return window;
    return ops.concat([ops.contiguous(ops.slice(all, axis, 0, near.sinks)), window], axis);
  }
}
