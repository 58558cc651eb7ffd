/**
 * What a calibration computes of one layer on one window: attention written out, because the weight of a score error is
 * needed for every pair of tokens. To first order an error e of the score of query m and key t moves the residual stream
 * by p (v_t - o_m) W_O e, where p is the attention probability and o_m the head's output, so a pair weighs
 *     w(m, t) = p^2 |(v_t - o_m) W_O,h|^2 * scoreScale^2.
 * Sums over pairs: see collective/statistics.ts; omega_t = sum_{h,m} w, nu_t = sum_{h,m} p^2 mean diag(W_O,h^T W_O,h).
 * Programs: 'project' (queries, keys, values), one for each KV head (keeps the [T, T] matrices of few heads at a time),
 * 'finish' (token-weighted moments, and the stream that the next layer reads).
 */
import { invariant } from '../../config/errors.ts';
import type { GqaConfig, ModelConfig } from '../../config/model-config.ts';
import type { Kernels, Ops, ProgramSet, Tensor } from '../kernels/kernels.ts';
import { normed } from '../layer.ts';
import { bytesOf } from '../rank-parts.ts';
import type { WholeLayer } from './whole-layer.ts';

export class StatisticsPrograms implements Disposable {
  /** Sums over windows. */
  readonly keyMoment: Tensor; // [D + 1, D + 1]
  readonly valueMoment: Tensor; // [D + 1, D + 1]
  readonly inputMoment: Tensor; // [D + 1, D + 1]
  readonly queryMoments: Tensor; // [H, d, d]

  private readonly kernels: Kernels;
  private readonly model: ModelConfig;
  private readonly attention: GqaConfig;
  private readonly layer: WholeLayer;
  private readonly tokens: number;
  private readonly headsPerKvHead: number;
  private readonly tensors: Tensor[] = [];
  private readonly x: Tensor; // [T, D]
  private readonly inputT: Tensor; // [D + 1, T] normed input and 1
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
  private readonly onesOfHead: Tensor; // [d]
  private readonly mask: Tensor; // [T, T]
  private readonly positions: Tensor; // [T] i32
  private readonly frequencies: Tensor; // [d / 2]
  /** Rows cos(theta_l t), rows sin(theta_l t), a row of ones. [1, d + 1, T] */
  private readonly angles: Tensor;
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
    this.keyMoment = this.allocate([hidden + 1, hidden + 1]);
    this.valueMoment = this.allocate([hidden + 1, hidden + 1]);
    this.inputMoment = this.allocate([hidden + 1, hidden + 1]);
    this.queryMoments = this.allocate([numHeads, headDim, headDim]);
    this.x = this.allocate([tokens, hidden]);
    this.inputT = this.allocate([hidden + 1, tokens]);
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
    this.onesOfHead = this.allocate([headDim]);
    this.mask = this.allocate([tokens, tokens]);
    this.positions = this.allocate([tokens], 'i32');
    this.frequencies = this.allocate([headDim / 2]);
    this.angles = this.allocate([1, headDim + 1, tokens]);
    this.uploadConstants();
    this.set = kernels.compile([
      (ops) => this.project(ops),
      ...Array.from({ length: numKvHeads }, (_, kvHead) => (ops: Ops) => this.pairsOf(ops, kvHead)),
      (ops) => this.finish(ops),
    ]);
  }

  /** Starts a layer: the sums are zero, the layer's Gram means are in place. */
  begin(): void {
    for (const sum of [this.keyMoment, this.valueMoment, this.inputMoment, this.queryMoments]) this.clear(sum);
    const means = new Float32Array(this.model.numHeads * this.tokens);
    this.layer.gramMeans.forEach((mean, head) => means.fill(mean, head * this.tokens, (head + 1) * this.tokens));
    this.kernels.upload(this.gramMeans, bytesOf(means));
  }

  /**
   * Adds one window's sums, and replaces `x` by the stream behind the layer.
   * @param x [T, D]
   * @param takePairs per KV head: sums over t of w times `angles` [H / G, T, d + 1], sums over t of p^2 [H / G, T]
   */
  run(x: Float32Array, takePairs: (kvHead: number, turned: Float32Array, squares: Float32Array) => void): void {
    this.kernels.upload(this.x, bytesOf(x));
    this.clear(this.omega);
    this.clear(this.nu);
    this.set.run(0);
    const { numKvHeads, headDim } = this.attention;
    const turned = new Float32Array(this.headsPerKvHead * this.tokens * (headDim + 1));
    const squares = new Float32Array(this.headsPerKvHead * this.tokens);
    for (let kvHead = 0; kvHead < numKvHeads; kvHead++) {
      this.set.run(1 + kvHead);
      this.kernels.download(this.output(1 + kvHead, 0), turned);
      this.kernels.download(this.output(1 + kvHead, 1), squares);
      takePairs(kvHead, turned, squares);
    }
    this.set.run(1 + numKvHeads);
    this.kernels.download(this.output(1 + numKvHeads, 0), x);
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.kernels.release(this.tensors);
  }

  private project(ops: Ops): Tensor[] {
    const { layer, tokens } = this;
    const { headDim } = this.attention;
    const h = normed(ops, this.x, layer.attentionNorm, this.model.normEps);
    const ones = ops.reshape(this.ones, [tokens, 1]);
    ops.copyTo(this.inputT, ops.contiguous(ops.permute(ops.concat([h, ones], 1), [1, 0])));
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
    ops.copyTo(this.keys, rotated(project(layer.key, layer.keyBias)));
    const v = project(layer.value, layer.valueBias);
    ops.copyTo(this.values, ops.contiguous(ops.permute(v, [1, 0, 2])));
    ops.copyTo(this.valuesT, ops.contiguous(ops.permute(v, [1, 2, 0])));
    return [];
  }

  private pairsOf(ops: Ops, kvHead: number): Tensor[] {
    const { tokens, headsPerKvHead: count } = this;
    const { headDim, scoreScale } = this.attention;
    const first = kvHead * count;
    const q = ops.slice(this.queries, 0, first, count);
    const scores = ops.matmul(ops.slice(this.keys, 0, kvHead, 1), q); // [count, T, T]
    const p = ops.softmax(scores, this.mask, scoreScale);
    const o = ops.matmul(ops.slice(this.valuesT, 0, kvHead, 1), p); // [count, T, d]
    const flat = ops.reshape(ops.contiguous(ops.permute(o, [1, 0, 2])), [tokens, count * headDim]);
    ops.copyTo(ops.slice(this.heads, 1, first * headDim, count * headDim), flat);

    const squares = ops.multiply(p, p);
    const w = ops.multiply(squares, this.moves(ops, kvHead, o)); // [count, T, T]
    const turned = ops.matmul(this.angles, w); // [count, T, d + 1]
    for (let i = 0; i < count; i++) this.addQueryMoment(ops, first + i, ops.slice(turned, 0, i, 1));
    ops.copyTo(this.omega, ops.add(this.omega, this.overQueries(ops, sumOf(ops, headsOf(ops, w)))));
    const weighted = headsOf(ops, squares).map((square, i) =>
      ops.multiply(square, ops.reshape(ops.slice(this.gramMeans, 0, first + i, 1), [tokens])),
    );
    ops.copyTo(this.nu, ops.add(this.nu, this.overQueries(ops, sumOf(ops, weighted))));
    const onesT = ops.reshape(this.ones, [1, 1, tokens]);
    return [turned, ops.matmul(onesT, squares)];
  }

  /**
   * |(v_t - o_m) W_O,h|^2 scoreScale^2 for all pairs, as one product of rows extended by two columns:
   * [v_t, v_t G v_t, 1] . [-2 G o_m, 1, o_m G o_m]. @param o [count, T, d]  @returns [count, T (m), T (t)]
   */
  private moves(ops: Ops, kvHead: number, o: Tensor): Tensor {
    const { tokens, headsPerKvHead: count } = this;
    const { headDim, scoreScale } = this.attention;
    const grams = ops.slice(this.layer.outputGrams, 0, kvHead * count, count);
    const v = ops.slice(this.values, 0, kvHead, 1);
    const repeated = ops.concat(
      Array.from({ length: count }, () => v),
      0,
    );
    const gramV = ops.concat(
      Array.from({ length: count }, (_, i) => ops.matmul(ops.slice(grams, 0, i, 1), v)),
      0,
    );
    const gramO = ops.matmul(grams, o);
    const onesD = ops.reshape(this.onesOfHead, [1, 1, headDim]);
    const quadraticV = ops.matmul(onesD, ops.multiply(repeated, gramV)); // [count, T, 1]
    const quadraticO = ops.matmul(onesD, ops.multiply(o, gramO));
    const one = ops.concat(
      Array.from({ length: count }, () => ops.reshape(this.ones, [1, tokens, 1])),
      0,
    );
    const right = ops.concat([ops.scale(gramO, -2), one, quadraticO], 2);
    return ops.matmul(ops.concat([repeated, quadraticV, one], 2), ops.scale(right, scoreScale * scoreScale));
  }

  /** Adds sum_m (sum_t w) q_m q_m^T. @param turned [1, T, d + 1] of one head; its last column is sum_t w */
  private addQueryMoment(ops: Ops, head: number, turned: Tensor): void {
    const { tokens } = this;
    const { headDim } = this.attention;
    const weights = ops.reshape(ops.contiguous(ops.slice(turned, 2, headDim, 1)), [tokens]);
    const qT = ops.contiguous(ops.slice(this.plainQueriesT, 0, head, 1)); // [1, d, T]
    const sum = ops.slice(this.queryMoments, 0, head, 1);
    ops.copyTo(sum, ops.add(sum, ops.matmul(qT, ops.multiply(qT, weights))));
  }

  /** Sums over queries m. @param pairs [1, T (m), T (t)]  @returns [1, T] */
  private overQueries(ops: Ops, pairs: Tensor): Tensor {
    const { tokens } = this;
    const transposed = ops.contiguous(ops.permute(ops.reshape(pairs, [tokens, tokens]), [1, 0]));
    return ops.matmul(transposed, ops.reshape(this.ones, [1, tokens]));
  }

  private finish(ops: Ops): Tensor[] {
    const { layer, tokens } = this;
    const addMoment = (sum: Tensor, weights: Tensor): void => {
      const weighted = ops.multiply(this.inputT, ops.reshape(weights, [tokens]));
      ops.copyTo(sum, ops.add(sum, ops.matmul(this.inputT, weighted)));
    };
    addMoment(this.keyMoment, this.omega);
    addMoment(this.valueMoment, this.nu);
    addMoment(this.inputMoment, this.ones);
    const attended = ops.add(this.x, ops.add(ops.matmul(layer.output, this.heads), layer.outputBias));
    const h = normed(ops, attended, layer.feedForwardNorm, this.model.normEps);
    const gated = ops.gated(ops.matmul(layer.gate, h), ops.matmul(layer.up, h), this.model.feedForward.activation);
    return [ops.add(attended, ops.matmul(layer.down, gated))];
  }

  private uploadConstants(): void {
    const { kernels, tokens } = this;
    const { frequencies } = this.model.rope;
    const half = frequencies.length;
    kernels.upload(this.ones, bytesOf(new Float32Array(tokens).fill(1)));
    kernels.upload(this.onesOfHead, bytesOf(new Float32Array(this.attention.headDim).fill(1)));
    kernels.upload(this.frequencies, bytesOf(Float32Array.from(frequencies)));
    kernels.upload(this.positions, bytesOf(Int32Array.from({ length: tokens }, (_, t) => t)));
    const mask = new Float32Array(tokens * tokens);
    for (let m = 0; m < tokens; m++) mask.fill(-Infinity, m * tokens + m + 1, (m + 1) * tokens);
    kernels.upload(this.mask, bytesOf(mask));
    const angles = new Float32Array((2 * half + 1) * tokens).fill(1);
    frequencies.forEach((frequency, l) => {
      for (let t = 0; t < tokens; t++) {
        angles[l * tokens + t] = Math.cos(frequency * t);
        angles[(half + l) * tokens + t] = Math.sin(frequency * t);
      }
    });
    kernels.upload(this.angles, bytesOf(angles));
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

/** The heads of [heads, T, T], one by one: [1, T, T] each. */
function headsOf(ops: Ops, x: Tensor): Tensor[] {
  return Array.from({ length: dim(x, 0) }, (_, head) => ops.slice(x, 0, head, 1));
}

function sumOf(ops: Ops, parts: readonly Tensor[]): Tensor {
  const [first, ...rest] = parts;
  invariant(first !== undefined, 'a sum of nothing');
  return rest.reduce((sum, part) => ops.add(sum, part), first);
}

function dim(x: Tensor, axis: number): number {
  const length = x.shape[axis];
  invariant(length !== undefined, `axis ${axis} of a tensor of shape [${x.shape.join(', ')}]`);
  return length;
}
