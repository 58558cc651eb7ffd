/**
 * What a fit computes of one layer over one window at once: fills the inputs of the formulas, runs them, reads what they
 * give. Scores take heads * T * T numbers of memory, a few times. Read next: fit-formulas.ts, fit-session.ts (the order).
 */
import { invariant } from '../../config/errors.ts';
import type { Kernels, Ops, ProgramSet, Tensor } from '../kernels/kernels.ts';
import { feedForwardDelta } from '../layer.ts';
import type { MlaWeights } from '../mla-weights.ts';
import { bytesOf, type RankParts } from '../rank-parts.ts';
import { FitFormulas, at, fastWidth, type FitSizes, type FitTensors } from './fit-formulas.ts';
import { masksOf } from './fit-masks.ts';
import { FitNear } from './fit-near.ts';
import { weighQueries } from './fit-order.ts';
import type { LayerMatrices } from './fit-solve.ts';

const programOrder = ['exactHeads', 'latentMoments', 'queries', 'mixtures', 'gram', 'heads', 'feedForward'] as const;
type ProgramName = (typeof programOrder)[number];

export class FitPrograms implements Disposable {
  private readonly parts: RankParts;
  private readonly sizes: FitSizes;
  private readonly kernels: Kernels;
  private readonly mla: MlaWeights;
  private readonly tensors: Tensor[] = [];
  private readonly inputs: FitTensors;
  private readonly near: FitNear | undefined;
  private readonly set: ProgramSet;
  private bias: Float32Array = new Float32Array(0); // [hidden]

  constructor(parts: RankParts, sizes: FitSizes, layer: number) {
    this.parts = parts;
    this.sizes = sizes;
    this.kernels = parts.kernels;
    const weights = parts.weights.layers[layer];
    invariant(weights?.attention?.kind === 'mla', `layer ${layer} has no latent attention`);
    this.mla = weights.attention;
    const { tokens: T, numHeads: H, config, groups } = sizes;
    const { latentDim: r, nopeDim: n, valueDim: v } = config;
    const allocate = (...shape: number[]): Tensor => this.allocate(shape);
    const positions = this.kernels.allocate('i32', [T]);
    this.tensors.push(positions);
    this.inputs = {
      x: allocate(T, parts.model.hiddenDim),
      positions,
      causal: allocate(T, T),
      exactly: allocate(T, T),
      shard: allocate(T, T),
      old: allocate(T, T),
      ones: allocate(1, 1, T),
      oneThenZeros: allocate(T, fastWidth),
      rotation: allocate(r, r),
      keys: allocate(H, r, n),
      slopes: groups.map(() => allocate(H, 1, n)),
      offsets: groups.map(() => allocate(H, T, 1)),
      rows: allocate(H, r + 1 + v, T),
      mixed: allocate(H, T, r),
      values: allocate(H, v, r),
      headOutputs: allocate(H, T, v),
    };
    this.near = this.mla.near && new FitNear(this.kernels, sizes, this.mla.near);
    const formulas = new FitFormulas(parts.model, sizes, weights.attentionNorm, this.mla, this.inputs, this.near);
    this.uploadMasks();
    const builders: Record<ProgramName, (ops: Ops) => readonly Tensor[]> = {
      exactHeads: (ops) => formulas.exactHeads(ops),
      latentMoments: (ops) => formulas.latentMoments(ops),
      queries: (ops) => formulas.queries(ops),
      mixtures: (ops) => formulas.mixtures(ops),
      gram: (ops) => formulas.gram(ops),
      heads: (ops) => formulas.heads(ops),
      feedForward: (ops) => {
        const delta = feedForwardDelta(ops, parts.model, weights, this.inputs.x);
        return delta === undefined ? [] : [delta];
      },
    };
    this.set = this.kernels.compile(programOrder.map((name) => builders[name]));
  }

  matrices(): LayerMatrices {
    const { numHeads: H, config } = this.sizes;
    const keyUp = new Float32Array(H * config.latentDim * config.nopeDim);
    const valueUp = new Float32Array(H * config.valueDim * config.latentDim);
    invariant(this.mla.decode.keyUp !== undefined, 'a fit of keys without a nope part');
    this.kernels.download(this.mla.decode.keyUp, keyUp);
    this.kernels.download(this.mla.decode.valueUp, valueUp);
    return { keyUp, valueUp };
  }

  /** @param rotation U [r, r] of the latent before it is cut */
  useRotation(rotation: Float32Array): void {
    this.upload(this.inputs.rotation, rotation);
  }

  /** @param keys [heads, r, n]  @param offsets [groups, heads, n + 1] */
  useKeys(keys: Float32Array, offsets: Float32Array): void {
    const { numHeads: H, tokens: T, config, groups } = this.sizes;
    const n = config.nopeDim;
    this.upload(this.inputs.keys, keys);
    groups.forEach((_, group) => {
      const slope = new Float32Array(H * n);
      const constant = new Float32Array(H * T);
      for (let h = 0; h < H; h++) {
        const from = (group * H + h) * (n + 1);
        slope.set(offsets.subarray(from, from + n), h * n);
        // The softmax multiplies by the scale; the constant is what is added behind that.
        constant.fill((offsets[from + n] ?? 0) / config.scoreScale, h * T, (h + 1) * T);
      }
      this.upload(at(this.inputs.slopes, group), slope);
      this.upload(at(this.inputs.offsets, group), constant);
    });
  }

  /** @param values [heads, v, r]  @param headBias [heads, v] */
  useValues(values: Float32Array, headBias: Float32Array): void {
    this.upload(this.inputs.values, values);
    this.bias = this.outputOf(headBias);
  }

  /** Outputs of all heads, whatever the phase. @param x [T, hidden]  @returns [heads, T, v] */
  exactHeads(x: Float32Array): Float32Array {
    this.upload(this.inputs.x, x);
    const { numHeads, tokens, config } = this.sizes;
    const [heads] = this.run('exactHeads', [numHeads * tokens * config.valueDim]);
    return heads ?? new Float32Array(0);
  }

  /** Sums over tokens of products of two latent columns [r, r] and of columns [r]. */
  latentMoments(x: Float32Array): { products: Float32Array; columns: Float32Array } {
    const { latentDim: r } = this.sizes.config;
    this.upload(this.inputs.x, x);
    const [products, columns] = this.run('latentMoments', [r * r, r]);
    invariant(products !== undefined && columns !== undefined, 'the latentMoments program has two outputs');
    return { products, columns };
  }

  /**
   * Absorbed queries behind the prompt, each times the root of what an error of its scores of old tokens costs; and the sum
   * of those costs. Products of two numbers of a query, by head [heads, r, r], and costs [heads].
   */
  queryMoments(x: Float32Array): { products: Float32Array; costs: Float32Array } {
    const { numHeads: H, tokens: T, config } = this.sizes;
    const { latentDim: r, valueDim: v } = config;
    this.upload(this.inputs.x, x);
    const [queries, squares] = this.run('queries', [H * T * r, H * T]);
    invariant(queries !== undefined && squares !== undefined, 'the queries program has two outputs');
    const costs = weighQueries(queries, squares, this.sizes);
    const gram = this.gramOf(queries, new Float32Array(H * T * v)); // [heads, r + 1 + v, r + 1]
    const products = new Float32Array(H * r * r);
    for (let h = 0; h < H; h++)
      for (let i = 0; i < r; i++) {
        const from = (h * (r + 1 + v) + i) * (r + 1);
        products.set(gram.subarray(from, from + r), (h * r + i) * r);
      }
    return { products, costs };
  }

  /** W_O W_UV of one head: what a latent adds to the output. @param valueUp [heads, v, r]  @returns [r, hidden] */
  outputOfLatent(valueUp: Float32Array, head: number): Float32Array {
    const { numHeads: H, tokens: T, config } = this.sizes;
    const { latentDim: r, valueDim: v } = config;
    const hidden = this.parts.model.hiddenDim;
    const out = new Float32Array(r * hidden);
    for (let first = 0; first < r; first += T) {
      const count = Math.min(T, r - first);
      const heads = new Float32Array(H * T * v); // row t: the head's values of latent column first + t
      for (let t = 0; t < count; t++)
        for (let i = 0; i < v; i++) heads[(head * T + t) * v + i] = valueUp[(head * v + i) * r + first + t] ?? 0;
      out.set(this.linearDelta(heads).subarray(0, count * hidden), first * hidden);
    }
    return out;
  }

  /**
   * What cut attention mixes, all groups side by side, of the prompt exactly [heads, T, r]; and what near tokens give the
   * heads beside that: [heads, T, v], of length 0 without
   */
  mixtures(x: Float32Array): { mixed: Float32Array; near: Float32Array } {
    const { numHeads: H, tokens: T, config, groups } = this.sizes;
    this.upload(this.inputs.x, x);
    const nearLength = this.near === undefined ? 0 : H * T * config.valueDim;
    const outputs = this.run('mixtures', [H * T * config.latentDim, 0, ...groups.map(() => 0), nearLength]);
    const [mixed] = outputs;
    const near = outputs.at(-1);
    invariant(mixed !== undefined && near !== undefined, 'the mixtures program has outputs');
    return { mixed, near };
  }

  /** How much old tokens weigh in all, exactly and in each group's attention. [heads, T] each */
  oldShares(x: Float32Array): { exact: Float32Array; groups: readonly Float32Array[] } {
    const { numHeads: H, tokens: T, config, groups } = this.sizes;
    this.upload(this.inputs.x, x);
    const lengths = [H * T * config.latentDim, H * T, ...groups.map(() => H * T)];
    const [, exact, ...shares] = this.run('mixtures', lengths);
    invariant(exact !== undefined, 'the mixtures program has outputs');
    return { exact, groups: shares };
  }

  /** Features [mixed, 1] and targets times features, behind the prompt. @returns [heads, r + 1 + v, r + 1] */
  gramOf(mixed: Float32Array, target: Float32Array): Float32Array {
    const { numHeads: H, tokens: T, prompt, config } = this.sizes;
    const { latentDim: r, valueDim: v } = config;
    const width = r + 1 + v;
    const rows = new Float32Array(H * width * T);
    for (let h = 0; h < H; h++)
      for (let t = prompt; t < T; t++) {
        const to = h * width * T + t;
        for (let i = 0; i < r; i++) rows[to + i * T] = mixed[(h * T + t) * r + i] ?? 0;
        rows[to + r * T] = 1;
        for (let i = 0; i < v; i++) rows[to + (r + 1 + i) * T] = target[(h * T + t) * v + i] ?? 0;
      }
    this.upload(this.inputs.rows, rows);
    const [gram] = this.run('gram', [H * width * (r + 1)]);
    return gram ?? new Float32Array(0);
  }

  /** W_O times one output of all heads. @param heads [heads, v]  @returns [hidden] */
  outputOf(heads: Float32Array): Float32Array {
    const { numHeads: H, tokens: T, config } = this.sizes;
    const v = config.valueDim;
    const all = new Float32Array(H * T * v);
    for (let h = 0; h < H; h++) all.set(heads.subarray(h * v, (h + 1) * v), h * T * v);
    return this.linearDelta(all).slice(0, this.parts.model.hiddenDim);
  }

  /** W_O without its bias. @param heads [heads, T, v]  @returns [T, hidden] */
  private linearDelta(heads: Float32Array): Float32Array {
    const zero = this.deltaOfHeads(new Float32Array(heads.length));
    return this.deltaOfHeads(heads).map((value, i) => value - (zero[i] ?? 0));
  }

  /** @param heads [heads, T, v]  @returns [T, hidden] */
  deltaOfHeads(heads: Float32Array): Float32Array {
    this.upload(this.inputs.headOutputs, heads);
    const [delta] = this.run('heads', [this.sizes.tokens * this.parts.model.hiddenDim]);
    return delta ?? new Float32Array(0);
  }

  /**
   * Corrected behind the prompt; in it, which sees nothing that is cut, the exact one.
   * @param mixed, near as mixtures gave them  @param exact [T, hidden]  @returns [T, hidden]
   */
  deltaOfMixtures({ mixed, near }: ReturnType<FitPrograms['mixtures']>, exact: Float32Array): Float32Array {
    const { tokens: T, prompt } = this.sizes;
    const hidden = this.parts.model.hiddenDim;
    this.upload(this.inputs.mixed, mixed);
    if (near.length > 0) this.upload(this.inputs.headOutputs, near);
    const [, cut] = this.run('heads', [0, T * hidden]);
    invariant(cut !== undefined, 'the heads program has two outputs');
    for (let t = prompt; t < T; t++)
      for (let i = 0; i < hidden; i++) cut[t * hidden + i] = (cut[t * hidden + i] ?? 0) + (this.bias[i] ?? 0);
    cut.set(exact.subarray(0, prompt * hidden));
    return cut;
  }

  /** @param x [T, hidden]  @returns [T, hidden] */
  feedForward(x: Float32Array): Float32Array {
    this.upload(this.inputs.x, x);
    return this.run('feedForward', [x.length])[0] ?? new Float32Array(x.length);
  }

  private uploadMasks(): void {
    const T = this.sizes.tokens;
    const masks = masksOf(this.sizes);
    for (const name of ['causal', 'exactly', 'shard', 'old'] as const) this.upload(this.inputs[name], masks[name]);
    this.upload(this.inputs.ones, new Float32Array(T).fill(1));
    this.upload(
      this.inputs.oneThenZeros,
      Float32Array.from({ length: T * fastWidth }, (_, i) => (i % fastWidth === 0 ? 1 : 0)),
    );
    this.kernels.upload(this.inputs.positions, bytesOf(Int32Array.from({ length: T }, (_, t) => t)));
  }

  private run(name: ProgramName, lengths: readonly number[]): Float32Array[] {
    const index = programOrder.indexOf(name);
    this.set.run(index);
    return lengths.map((length, i) => {
      const output = this.set.outputs[index]?.[i];
      const values = new Float32Array(length);
      if (output !== undefined) this.kernels.download(output, values);
      return values;
    });
  }

  private allocate(shape: readonly number[]): Tensor {
    const tensor = this.kernels.allocate('f32', shape);
    this.tensors.push(tensor);
    return tensor;
  }

  private upload(tensor: Tensor, values: Float32Array): void {
    this.kernels.upload(tensor, bytesOf(values));
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.near?.[Symbol.dispose]();
    this.kernels.release(this.tensors);
  }
}
