/**
 * What a calibration computes of one layer on one window: attention written out, because the weight of a score error is
 * needed for every pair of tokens. To first order an error e of the score of query m and key t moves the residual stream
 * by p (v_t - o_m) W_O e, where p is the attention probability and o_m the head's output, so a pair weighs
 *     w(m, t) = p^2 |(v_t - o_m) W_O,h|^2 * scoreScale^2,
 * times the square of the slope of a cap on the scores, 1 - tanh^2. A norm behind attention is left out of the weight.
 * Sums over pairs: see collective/statistics.ts; omega_t = sum_{h,m} w, nu_t = sum_{h,m} p^2 mean diag(W_O,h^T W_O,h).
 * Programs: 'project' (queries, keys, values), one for each KV head and block of queries (keeps matrices over pairs small),
 * 'moments' (token-weighted), 'advance' (the stream that the next layer reads; experts are added on the host).
 */
import { invariant } from '../../config/errors.ts';
import type { GqaConfig, ModelConfig } from '../../config/model-config.ts';
import { cut, size, type Range } from '../../config/shard-plan.ts';
import type { Kernels, Ops, ProgramSet, Tensor } from '../kernels/kernels.ts';
import { normed } from '../layer.ts';
import { bytesOf } from '../rank-parts.ts';
import { afterAttention, afterFeedForward, dim, headsOf, sumOf, timesSlope } from './operation-helpers.ts';
import { angleRows, wholeMask } from './window-tables.ts';
import { moves } from './value-moves.ts';
import type { WholeLayer } from './whole-layer.ts';

/** Queries of one block see no key behind it: with 4 blocks, 5 in 8 of all pairs are computed. */
const queryBlocksOfWindow = 4;

/** The pairs of one program: queries of the heads that read `kvHead`, and the keys up to them. */
export interface PairBlock {
  readonly kvHead: number;
  readonly queries: Range;
}

export class StatisticsPrograms implements Disposable {
  /** Sums over windows. */
  readonly keyMoment: Tensor; // [2 G d + 1, 2 G d + 1]
  readonly valueMoment: Tensor; // [2 G d + 1, 2 G d + 1]
  readonly plainMoment: Tensor; // [2 G d + 1, 2 G d + 1]
  readonly queryMoments: Tensor; // [H, d, d]

  private readonly kernels: Kernels;
  private readonly model: ModelConfig;
  private readonly attention: GqaConfig;
  private readonly layer: WholeLayer;
  private readonly tokens: number;
  private readonly headsPerKvHead: number;
  private readonly tensors: Tensor[] = [];
  private readonly x: Tensor; // [T, D]
  private readonly keyValueT: Tensor; // [2 G d + 1, T] keys before RoPE, values, 1
  private readonly queries: Tensor; // [H, T, d] rotated
  private readonly plainQueriesT: Tensor; // [H, d, T] before RoPE
  private readonly keys: Tensor; // [G, T, d] rotated
  private readonly values: Tensor; // [G, T, d]
  private readonly valuesT: Tensor; // [G, d, T]
  private readonly heads: Tensor; // [T, H d]
  private readonly omega: Tensor; // [1, T]
  private readonly nu: Tensor; // [1, T]
  private readonly gramMeans: Tensor; // [H, T] every row one number
  private readonly ones: Tensor; // [T]
  private readonly manyOnes: Tensor; // [max(T, d)]
  private readonly mask: Tensor; // [T, T]
  private maskWindow = 0;
  private readonly positions: Tensor; // [T] i32
  private readonly frequencies: Tensor; // [d / 2]
  /** Rows cos(theta_l t), rows sin(theta_l t), a row of ones. [1, d + 1, T] */
  private readonly angles: Tensor;
  private readonly blocks: readonly PairBlock[];
  private readonly set: ProgramSet;

  constructor(kernels: Kernels, model: ModelConfig, attention: GqaConfig, layer: WholeLayer, tokens: number) {
    this.kernels = kernels;
    this.model = model;
    this.attention = attention;
    this.layer = layer;
    this.tokens = tokens;
    const { hiddenDim: hidden, numHeads } = model;
    const { headDim, numKvHeads } = attention;
    this.headsPerKvHead = numHeads / numKvHeads;
    const width = 2 * numKvHeads * headDim + 1;
    this.keyMoment = this.allocate([width, width]);
    this.valueMoment = this.allocate([width, width]);
    this.plainMoment = this.allocate([width, width]);
    this.queryMoments = this.allocate([numHeads, headDim, headDim]);
    this.x = this.allocate([tokens, hidden]);
    this.keyValueT = this.allocate([width, tokens]);
    this.queries = this.allocate([numHeads, tokens, headDim]);
    this.plainQueriesT = this.allocate([numHeads, headDim, tokens]);
    this.keys = this.allocate([numKvHeads, tokens, headDim]);
    this.values = this.allocate([numKvHeads, tokens, headDim]);
    this.valuesT = this.allocate([numKvHeads, headDim, tokens]);
    this.heads = this.allocate([tokens, numHeads * headDim]);
    this.omega = this.allocate([1, tokens]);
    this.nu = this.allocate([1, tokens]);
    this.gramMeans = this.allocate([numHeads, tokens]);
    this.ones = this.allocate([tokens]);
    this.manyOnes = this.allocate([Math.max(tokens, headDim)]);
    this.mask = this.allocate([tokens, tokens]);
    this.positions = this.allocate([tokens], 'i32');
    this.frequencies = this.allocate([headDim / 2]);
    this.angles = this.allocate([1, headDim + 1, tokens]);
    this.uploadConstants();
    const queryBlocks = cut(tokens, new Array<number>(Math.min(queryBlocksOfWindow, tokens)).fill(1), 1);
    this.blocks = Array.from({ length: numKvHeads }, (_, kvHead) =>
      queryBlocks.map((queries) => ({ kvHead, queries })),
    ).flat();
    this.set = kernels.compile([
      (ops) => this.project(ops),
      ...this.blocks.map(
        ({ kvHead, queries }) =>
          (ops: Ops) =>
            this.pairsOf(ops, kvHead, queries),
      ),
      (ops) => this.moments(ops),
      (ops) => this.advance(ops),
    ]);
  }

  /** Starts a layer: the sums are zero, the layer's Gram means are in place. */
  begin(): void {
    if (this.layer.window !== this.maskWindow) {
      this.maskWindow = this.layer.window;
      this.kernels.upload(this.mask, bytesOf(wholeMask(this.tokens, this.maskWindow)));
    }
    for (const sum of [this.keyMoment, this.valueMoment, this.plainMoment, this.queryMoments]) this.clear(sum);
    const means = new Float32Array(this.model.numHeads * this.tokens);
    this.layer.gramMeans.forEach((mean, head) => means.fill(mean, head * this.tokens, (head + 1) * this.tokens));
    this.kernels.upload(this.gramMeans, bytesOf(means));
  }

  /**
   * Adds one window's sums.
   * @param x [T, D]; replaced by the stream behind the layer when `advances`
   * @param takePairs per block: sums over t of w times `angles` [H / G, m, d + 1], sums over t of p^2 [H / G, m]
   */
  run(
    x: Float32Array,
    advances: boolean,
    takePairs: (block: PairBlock, turned: Float32Array, squares: Float32Array) => void,
  ): void {
    this.kernels.upload(this.x, bytesOf(x));
    this.clear(this.omega);
    this.clear(this.nu);
    this.set.run(0);
    this.blocks.forEach((block, i) => {
      const rows = this.headsPerKvHead * size(block.queries);
      const turned = new Float32Array(rows * (this.attention.headDim + 1));
      const squares = new Float32Array(rows);
      this.set.run(1 + i);
      this.kernels.download(this.output(1 + i, 0), turned);
      this.kernels.download(this.output(1 + i, 1), squares);
      takePairs(block, turned, squares);
    });
    const last = 1 + this.blocks.length;
    this.set.run(last);
    if (!advances) return;
    this.set.run(last + 1);
    this.kernels.download(this.output(last + 1, this.layer.routes ? 0 : 1), x);
    if (this.layer.routes) this.layer.addExperts(x);
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.kernels.release(this.tensors);
  }

  private project(ops: Ops): Tensor[] {
    const { layer, tokens } = this;
    const { headDim } = this.attention;
    const h = normed(ops, this.x, layer.attentionNorm, this.model.normEps);
    const project = (weight: Tensor, bias: Tensor): Tensor => {
      const flat = ops.add(ops.matmul(weight, h), bias);
      return ops.reshape(flat, [tokens, dim(flat, 1) / headDim, headDim]);
    };
    const rotated = (x: Tensor): Tensor => {
      const { attentionFactor } = this.model.rope;
      const turned = ops.rope(x, this.positions, this.frequencies, { interleaved: false, attentionFactor });
      return ops.contiguous(ops.permute(turned, [1, 0, 2]));
    };
    const q = project(layer.query, layer.queryBias);
    ops.copyTo(this.queries, rotated(q));
    ops.copyTo(this.plainQueriesT, ops.contiguous(ops.permute(q, [1, 2, 0])));
    const k = project(layer.key, layer.keyBias);
    ops.copyTo(this.keys, rotated(k));
    const v = project(layer.value, layer.valueBias);
    ops.copyTo(this.values, ops.contiguous(ops.permute(v, [1, 0, 2])));
    ops.copyTo(this.valuesT, ops.contiguous(ops.permute(v, [1, 2, 0])));
    const flat = (x: Tensor): Tensor => ops.reshape(x, [tokens, dim(x, 1) * headDim]);
    const joined = ops.concat([flat(k), flat(v), ops.reshape(this.ones, [tokens, 1])], 1);
    ops.copyTo(this.keyValueT, ops.contiguous(ops.permute(joined, [1, 0])));
    return [];
  }

  private pairsOf(ops: Ops, kvHead: number, { start, end }: Range): Tensor[] {
    const { headsPerKvHead: count } = this;
    const { headDim, scoreScale, scoreSoftcap: cap } = this.attention;
    const first = kvHead * count;
    const rows = end - start; // m; keys t are those before `end`
    const part = (x: Tensor, from: number, length: number, axis: number, at: number, size: number): Tensor =>
      ops.contiguous(ops.slice(ops.slice(x, 0, from, length), axis, at, size));
    const q = part(this.queries, first, count, 1, start, rows); // [count, m, d]
    const scores = ops.matmul(part(this.keys, kvHead, 1, 1, 0, end), q); // [count, m, t]
    const mask = part(this.mask, start, rows, 1, 0, end);
    const capped = cap > 0 ? ops.softcap(ops.scale(scores, scoreScale), cap) : undefined;
    const p = capped === undefined ? ops.softmax(scores, mask, scoreScale) : ops.softmax(capped, mask, 1);
    const o = ops.matmul(part(this.valuesT, kvHead, 1, 2, 0, end), p); // [count, m, d]
    const flat = ops.reshape(ops.contiguous(ops.permute(o, [1, 0, 2])), [rows, count * headDim]);
    const place = ops.slice(ops.slice(this.heads, 0, start, rows), 1, first * headDim, count * headDim);
    ops.copyTo(place, flat);

    const squares = ops.multiply(p, p);
    const values = part(this.values, kvHead, 1, 1, 0, end); // [1, t, d]
    const grams = { grams: ops.slice(this.layer.outputGrams, 0, first, count), ones: this.manyOnes };
    const raw = ops.multiply(squares, moves(ops, grams, values, o, scoreScale)); // [count, m, t]
    const w = capped === undefined ? raw : timesSlope(ops, raw, ops.scale(capped, 1 / cap));
    const turned = ops.matmul(part(this.angles, 0, 1, 2, 0, end), w); // [count, m, d + 1]
    for (let i = 0; i < count; i++) {
      const queriesT = part(this.plainQueriesT, first + i, 1, 2, start, rows); // [1, d, m]
      this.addQueryMoment(ops, first + i, queriesT, ops.slice(turned, 0, i, 1));
    }
    const addTo = (sum: Tensor, pairs: Tensor): void => {
      const seen = ops.slice(sum, 1, 0, end);
      ops.copyTo(seen, ops.add(seen, this.overQueries(ops, pairs)));
    };
    addTo(this.omega, sumOf(ops, headsOf(ops, w)));
    const weighted = headsOf(ops, squares).map((square, i) =>
      ops.multiply(square, ops.reshape(part(this.gramMeans, first + i, 1, 1, 0, end), [end])),
    );
    addTo(this.nu, sumOf(ops, weighted));
    const ones = ops.reshape(ops.slice(this.ones, 0, 0, end), [1, 1, end]);
    return [turned, ops.matmul(ones, squares)];
  }

  /** Adds sum_m (sum_t w) q_m q_m^T. @param qT [1, d, m]  @param turned [1, m, d + 1]; its last column is sum_t w */
  private addQueryMoment(ops: Ops, head: number, qT: Tensor, turned: Tensor): void {
    const { headDim } = this.attention;
    const weights = ops.reshape(ops.contiguous(ops.slice(turned, 2, headDim, 1)), [dim(turned, 1)]);
    const sum = ops.slice(this.queryMoments, 0, head, 1);
    ops.copyTo(sum, ops.add(sum, ops.matmul(qT, ops.multiply(qT, weights))));
  }

  /** Sums over queries m. @param pairs [1, m, t]  @returns [1, t] */
  private overQueries(ops: Ops, pairs: Tensor): Tensor {
    const [rows, seen] = [dim(pairs, 1), dim(pairs, 2)];
    const transposed = ops.contiguous(ops.permute(ops.reshape(pairs, [rows, seen]), [1, 0]));
    return ops.matmul(transposed, ops.reshape(ops.slice(this.ones, 0, 0, rows), [1, rows]));
  }

  private moments(ops: Ops): Tensor[] {
    const { tokens } = this;
    const addMoment = (sum: Tensor, weights: Tensor): void => {
      const weighted = ops.multiply(this.keyValueT, ops.reshape(weights, [tokens]));
      ops.copyTo(sum, ops.add(sum, ops.matmul(this.keyValueT, weighted)));
    };
    addMoment(this.keyMoment, this.omega);
    addMoment(this.valueMoment, this.nu);
    addMoment(this.plainMoment, this.ones);
    return [];
  }

  /** The stream behind attention, and, where any layer is dense, behind a dense feed-forward part. */
  private advance(ops: Ops): Tensor[] {
    const { layer, model } = this;
    const delta = ops.add(ops.matmul(layer.output, this.heads), layer.outputBias);
    const attended = afterAttention(ops, model, layer, this.x, delta);
    if (model.experts?.layers.every(Boolean) === true) return [attended];
    return [attended, afterFeedForward(ops, model, layer, attended)];
  }

  private uploadConstants(): void {
    const { kernels, tokens } = this;
    const { frequencies } = this.model.rope;
    kernels.upload(this.ones, bytesOf(new Float32Array(tokens).fill(1)));
    kernels.upload(this.manyOnes, bytesOf(new Float32Array(Math.max(tokens, this.attention.headDim)).fill(1)));
    kernels.upload(this.frequencies, bytesOf(Float32Array.from(frequencies)));
    kernels.upload(this.positions, bytesOf(Int32Array.from({ length: tokens }, (_, t) => t)));
    kernels.upload(this.mask, bytesOf(wholeMask(tokens)));
    kernels.upload(this.angles, bytesOf(angleRows(frequencies, tokens)));
  }

  private allocate(shape: readonly number[], type: 'f32' | 'i32' = 'f32'): Tensor {
    const tensor = this.kernels.allocate(type, shape);
    this.tensors.push(tensor);
    return tensor;
  }

  private clear(sum: Tensor): void {
    this.kernels.upload(sum, bytesOf(new Float32Array(sum.shape.reduce((a, b) => a * b, 1))));
  }

  private output(program: number, index: number): Tensor {
    const tensor = this.set.outputs[program]?.[index];
    invariant(tensor !== undefined, `program ${program} has no output ${index}`);
    return tensor;
  }
}
