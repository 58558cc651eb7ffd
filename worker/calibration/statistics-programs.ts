/**
 * What a calibration computes of one layer on one window: attention written out, because the weight of a score error is
 * needed for every pair of tokens. To first order an error e of the score of query m and key t moves the residual stream
 * by p (v_t - o_m) W_O e, where p is the attention probability and o_m the head's output, so a pair weighs
 *     w(m, t) = p^2 |(v_t - o_m) W_O,h|^2 * scoreScale^2,
 * times the square of the slope of a cap on the scores, 1 - tanh^2. A norm behind attention is left out of the weight.
 * Sums over pairs: see collective/statistics.ts; omega_t = sum_{h,m} w, nu_t = sum_{h,m} p^2 mean diag(W_O,h^T W_O,h).
 * Programs: 'project' (queries, keys, values), one for each head and block of queries (pair-program.ts), 'moments'
 * (weighted by token and by query), 'advance' (the stream that the next layer reads; experts are added on the host).
 * Read next: pair-program.ts, window-tensors.ts.
 */
import { invariant } from '../../config/errors.ts';
import type { GqaConfig, ModelConfig } from '../../config/model-config.ts';
import { size, type ExactTokens, type Range } from '../../config/shard-plan.ts';
import { splitStatistics, statisticsLength } from '../../collective/statistics.ts';
import type { Kernels, Ops, ProgramSet, Tensor } from '../kernels/kernels.ts';
import { normed } from '../layer.ts';
import { bytesOf } from '../rank-parts.ts';
import { withOnes } from './augmented.ts';
import { afterAttention, afterFeedForward, byHead, dim, headsOf, sumOf } from './operation-helpers.ts';
import { addPairs, type PairBlock } from './pair-program.ts';
import { QueryBlocks } from './query-blocks.ts';
import { moveValues } from './value-moves.ts';
import type { WholeLayer } from './whole-layer.ts';
import { farPairs } from './window-tables.ts';
import { WindowTensors } from './window-tensors.ts';

/** Places among the outputs of 'moments'. */
const moment = { key: 0, value: 2, plain: 4, queries: 6 } as const;

export class StatisticsPrograms implements Disposable {
  private readonly kernels: Kernels;
  private readonly model: ModelConfig;
  private readonly attention: GqaConfig;
  private readonly layer: WholeLayer;
  private readonly tokens: number;
  private readonly at: WindowTensors;
  private readonly queryBlocks: QueryBlocks;
  private readonly blocks: number;
  private readonly farPairs: Tensor[] = [];
  private readonly lastRead = new Map<Tensor, Float32Array>();
  private readonly set: ProgramSet;

  /** @param near tokens whose pairs do not count: they are exact */
  constructor(
    kernels: Kernels,
    model: ModelConfig,
    attention: GqaConfig,
    layer: WholeLayer,
    tokens: number,
    near: ExactTokens | undefined,
  ) {
    this.kernels = kernels;
    this.model = model;
    this.attention = attention;
    this.layer = layer;
    this.tokens = tokens;
    const { numHeads } = model;
    this.queryBlocks = new QueryBlocks(kernels, tokens);
    const at = new WindowTensors(kernels, model, attention, tokens);
    this.at = at;
    const far = this.queryBlocks.blocks.map(({ queries }) => near && this.constant(queries, near));
    const blocks = Array.from({ length: numHeads }, (_, head) =>
      this.queryBlocks.blocks.map((block, i): PairBlock => ({
        ...block,
        head,
        kvHead: this.kvHeadOf(head),
        far: far[i],
      })),
    ).flat();
    this.blocks = blocks.length;
    this.set = kernels.compile([
      (ops) => this.project(ops),
      ...blocks.map(
        (block) =>
          (ops: Ops): Tensor[] =>
            addPairs(ops, attention, layer.outputGrams, at, block),
      ),
      (ops) => this.moments(ops),
      (ops) => this.advance(ops),
    ]);
  }

  /** Starts a layer, whose weights are loaded. */
  begin(): void {
    this.queryBlocks.setWindow(this.layer.window);
    const means = new Float32Array(this.model.numHeads * this.tokens);
    this.layer.gramMeans.forEach((mean, head) => means.fill(mean, head * this.tokens, (head + 1) * this.tokens));
    this.kernels.upload(this.at.gramMeans, bytesOf(means));
  }

  /**
   * @param x [T, D]; replaced by the stream behind the layer when `advances`
   * @returns one window's sums, as collective/statistics.ts lays them out
   */
  run(x: Float32Array, advances: boolean): Float64Array {
    this.kernels.upload(this.at.x, bytesOf(x));
    this.at.clearSums();
    for (let program = 0; program <= this.blocks + 1; program++) this.set.run(program);
    const sums = this.collect();
    if (!advances) return sums;
    const last = this.blocks + 2;
    this.set.run(last);
    this.kernels.download(this.output(last, this.layer.routes ? 0 : 1), x);
    if (this.layer.routes) this.layer.addExperts(x);
    return sums;
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.at[Symbol.dispose]();
    this.queryBlocks[Symbol.dispose]();
    this.kernels.release(this.farPairs);
  }

  private constant(queries: Range, near: ExactTokens): Tensor {
    const tensor = this.kernels.allocate('f32', [size(queries), queries.end]);
    this.kernels.upload(tensor, bytesOf(farPairs(queries, near)));
    this.farPairs.push(tensor);
    return tensor;
  }

  private project(ops: Ops): Tensor[] {
    const { layer, tokens, at } = this;
    const { headDim } = this.attention;
    const h = normed(ops, at.x, layer.attentionNorm, this.model.normEps);
    const project = (weight: Tensor, bias: Tensor): Tensor => {
      const flat = ops.add(ops.matmul(weight, h), bias);
      return ops.reshape(flat, [tokens, dim(flat, 1) / headDim, headDim]);
    };
    const { attentionFactor } = this.model.rope;
    const rotated = (x: Tensor): Tensor =>
      byHead(ops, ops.rope(x, at.positions, at.frequencies, { interleaved: false, attentionFactor }));
    const q = project(layer.query, layer.queryBias);
    ops.copyTo(at.queries, rotated(q));
    ops.copyTo(at.plainQueriesT, ops.contiguous(ops.permute(q, [1, 2, 0])));
    const k = project(layer.key, layer.keyBias);
    ops.copyTo(at.keys, rotated(k));
    const v = project(layer.value, layer.valueBias);
    const values = byHead(ops, v); // [G, T, d]
    for (let head = 0; head < this.model.numHeads; head++) {
      const moving = { gram: ops.slice(layer.outputGrams, 0, head, 1), ones: at.ones, zeros: at.noMoves };
      const own = ops.contiguous(ops.slice(values, 0, this.kvHeadOf(head), 1));
      moveValues(ops, moving, own, ops.slice(at.moving, 0, head, 1));
    }
    [k, v].forEach((x, i) => {
      const merged = dim(x, 1) * headDim;
      const transposed = ops.contiguous(ops.permute(ops.reshape(x, [tokens, merged]), [1, 0]));
      ops.copyTo(ops.slice(at.keyValueT, 0, i * merged, merged), transposed);
    });
    return [];
  }

  /** For each weighting of tokens its moment and sum, of keys only or of both; then the moments of all heads' queries. */
  private moments(ops: Ops): Tensor[] {
    const { tokens, at } = this;
    const ones = ops.reshape(ops.slice(at.ones, 0, 0, tokens), [1, tokens]);
    const omega = sumOf(ops, headsOf(ops, at.omegas)); // [1, T]
    const nu = sumOf(ops, headsOf(ops, ops.multiply(at.squares, at.gramMeans)));
    const keysT = ops.slice(at.keyValueT, 0, 0, dim(at.keyValueT, 0) / 2);
    const momentOf = (rows: Tensor, weights: Tensor): Tensor[] => {
      const weighted = ops.multiply(rows, ops.reshape(weights, [tokens]));
      return [ops.matmul(rows, weighted), ops.matmul(rows, weights)];
    };
    const queries = headsOf(ops, at.plainQueriesT).map((qT, head) => {
      const weights = ops.reshape(ops.contiguous(ops.slice(at.queryWeights, 0, head, 1)), [tokens]);
      return ops.matmul(qT, ops.multiply(qT, weights)); // [1, d, d]
    });
    return [...momentOf(keysT, omega), ...momentOf(at.keyValueT, nu), ...momentOf(at.keyValueT, ones), ...queries];
  }

  /** The stream behind attention, and, where any layer is dense, behind a dense feed-forward part. */
  private advance(ops: Ops): Tensor[] {
    const { layer, model, at } = this;
    const delta = ops.add(ops.matmul(layer.output, at.heads), layer.outputBias);
    const attended = afterAttention(ops, model, layer, at.x, delta);
    if (model.experts?.layers.every(Boolean) === true) return [attended];
    return [attended, afterFeedForward(ops, model, layer, attended)];
  }

  private collect(): Float64Array {
    const { at, tokens } = this;
    const { numHeads } = this.model;
    const { headDim, numKvHeads } = this.attention;
    const shape = { numHeads, numKvHeads, headDim };
    const sums = new Float64Array(statisticsLength(shape));
    const fields = splitStatistics(sums, shape);
    const merged = numKvHeads * headDim;
    const omegas = this.read(at.omegas, numHeads * tokens);
    const squares = this.read(at.squares, numHeads * tokens);
    let nu = 0;
    for (let head = 0; head < numHeads; head++) {
      fields.scoreWeights[head] = total(omegas, head * tokens, tokens);
      fields.probabilityWeights[head] = total(squares, head * tokens, tokens);
      nu += (fields.probabilityWeights[head] ?? 0) * (this.layer.gramMeans[head] ?? 0);
      const own = this.readOutput(moment.queries + head, headDim * headDim);
      fields.queryMoments.set(own, head * headDim * headDim);
    }
    const omega = total(fields.scoreWeights, 0, numHeads);
    const take = (field: Float64Array, width: number, place: number, weight: number): void =>
      withOnes(this.readOutput(place, width * width), this.readOutput(place + 1, width), weight, field);
    take(fields.keyMoment, merged, moment.key, omega);
    take(fields.valueMoment, 2 * merged, moment.value, nu);
    take(fields.plainMoment, 2 * merged, moment.plain, tokens);
    const phases = this.read(at.phases, numHeads * 2 * headDim);
    const half = headDim / 2;
    for (let i = 0; i < numHeads * half; i++) {
      const place = Math.floor(i / half) * 2 * headDim + (i % half);
      fields.phaseCos[i] = (phases[place] ?? 0) + (phases[place + half] ?? 0);
      fields.phaseSin[i] = (phases[place + headDim] ?? 0) + (phases[place + headDim + half] ?? 0);
    }
    return sums;
  }

  private kvHeadOf(head: number): number {
    return Math.floor((head * this.attention.numKvHeads) / this.model.numHeads);
  }

  /** Until the same tensor is read again: arrays made anew for every window keep the garbage collector busy. */
  private read(tensor: Tensor, length: number): Float32Array {
    const values = this.lastRead.get(tensor) ?? new Float32Array(length);
    this.lastRead.set(tensor, values);
    this.kernels.download(tensor, values);
    return values;
  }

  /** Of 'moments'. */
  private readOutput(index: number, length: number): Float32Array {
    return this.read(this.output(this.blocks + 1, index), length);
  }

  private output(program: number, index: number): Tensor {
    const tensor = this.set.outputs[program]?.[index];
    invariant(tensor !== undefined, `program ${program} has no output ${index}`);
    return tensor;
  }
}

function total(values: Float32Array | Float64Array, start: number, count: number): number {
  let sum = 0;
  for (let i = start; i < start + count; i++) sum += values[i] ?? 0;
  return sum;
}
