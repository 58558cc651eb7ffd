/**
 * What a layer-by-layer refit computes of one layer on one window: the original layer on the original stream (its heads'
 * outputs are the targets), the converted attention on the converted stream, the normal equations of W_UV and W_O, and
 * the converted stream behind the layer. Feed-forward weights are those of the source for both streams.
 * Scores are taken against keys of d numbers per head (c W_UK), not absorbed: r is larger than d. Queries go in blocks,
 * which see no key behind them. Formulas: model/transmla/refit.ts. Read next: refit-session.ts.
 */
import { invariant } from '../../config/errors.ts';
import type { GqaConfig, ModelConfig } from '../../config/model-config.ts';
import type { RefitShape } from '../../collective/refit-maps.ts';
import type { Kernels, Ops, ProgramSet, Tensor } from '../kernels/kernels.ts';
import { normed } from '../layer.ts';
import { bytesOf } from '../rank-parts.ts';
import { withLastColumn, withOnes } from './augmented.ts';
import { afterAttention, afterFeedForward, byHead } from './operation-helpers.ts';
import { originalHeads } from './original-heads.ts';
import type { NearPart } from './near-part.ts';
import { QueryBlocks, type QueryBlock } from './query-blocks.ts';
import { RefitTensors } from './refit-tensors.ts';
import { wholeMask } from './window-tables.ts';
import type { WholeLayer } from './whole-layer.ts';

const program = { original: 0, project: 1, valueEquations: 2, outputEquations: 3, advance: 4, firstBlock: 5 } as const;

export class RefitPrograms implements Disposable {
  readonly at: RefitTensors;

  private readonly kernels: Kernels;
  private readonly model: ModelConfig;
  private readonly attention: GqaConfig;
  private readonly layer: WholeLayer;
  private readonly near: NearPart | undefined;
  private readonly shape: RefitShape;
  private readonly tokens: number;
  private maskWindow = 0;
  private readonly queryBlocks: QueryBlocks;
  private readonly set: ProgramSet;
  private readonly blocks: number;
  private readonly lastRead = new Map<string, Float32Array>();

  constructor(
    kernels: Kernels,
    model: ModelConfig,
    attention: GqaConfig,
    layer: WholeLayer,
    shape: RefitShape,
    tokens: number,
    near: NearPart | undefined,
  ) {
    this.kernels = kernels;
    this.model = model;
    this.attention = attention;
    this.layer = layer;
    this.shape = shape;
    this.tokens = tokens;
    const { numHeads } = shape;
    this.at = new RefitTensors(kernels, model, shape, tokens);
    this.near = near;
    this.queryBlocks = new QueryBlocks(kernels, tokens, near?.tokens);
    const blocks = Array.from({ length: numHeads }, (_, head) =>
      this.queryBlocks.blocks.map((block) => ({ ...block, head })),
    ).flat();
    this.set = kernels.compile([
      (ops) => this.original(ops),
      (ops) => this.project(ops),
      (ops) => this.valueEquations(ops),
      (ops) => this.outputEquations(ops),
      (ops) => this.advance(ops),
      ...blocks.map(
        (block) =>
          (ops: Ops): Tensor[] =>
            this.attend(ops, block),
      ),
    ]);
    this.blocks = blocks.length;
  }

  /** Starts a layer, whose weights are loaded. */
  begin(): void {
    if (this.layer.window === this.maskWindow) return;
    this.maskWindow = this.layer.window;
    this.kernels.upload(this.at.mask, bytesOf(wholeMask(this.tokens, this.maskWindow)));
    this.queryBlocks.setWindow(this.maskWindow);
  }

  /**
   * The original layer: replaces the stream x [T, D] by the one behind it.
   * @param heads [T, H d]  @param output of attention [T, D], both overwritten
   */
  runOriginal(x: Float32Array, heads: Float32Array, output: Float32Array): void {
    this.kernels.upload(this.at.x, bytesOf(x));
    this.set.run(program.original);
    this.kernels.download(this.at.heads, heads);
    this.download(program.original, 0, output);
    this.downloadStream(program.original, 1, x);
  }

  /**
   * The converted attention on x [T, D].
   * @param targets [T, H d]  @param features [H, T, r], overwritten
   * @param near what near tokens give [T, H d], overwritten; of length 0 without
   * @returns targets less what near tokens give, valid until the next call
   * @param equations features and targets of valueEquationFields, overwritten
   */
  runAttention(
    x: Float32Array,
    targets: Float32Array,
    features: Float32Array,
    near: Float32Array,
    equations: { readonly features: Float64Array; readonly targets: Float64Array },
  ): Float32Array {
    const { numHeads, headDim, latentDim: r } = this.shape;
    this.kernels.upload(this.at.x, bytesOf(x));
    this.set.run(program.project);
    for (let block = 0; block < this.blocks; block++) this.set.run(program.firstBlock + block);
    this.kernels.download(this.at.features, features);
    const missing = this.near?.takeFrom(targets, near) ?? targets;
    this.kernels.upload(this.at.targets, bytesOf(missing));
    this.set.run(program.valueEquations);
    const moments = this.read(program.valueEquations, 0, numHeads * r * r);
    const sums = this.read(program.valueEquations, 1, numHeads * r);
    const mixed = this.read(program.valueEquations, 2, numHeads * headDim * r);
    const outputs = this.read(program.valueEquations, 3, numHeads * headDim);
    const width = (r + 1) ** 2;
    for (let head = 0; head < numHeads; head++) {
      const own = equations.features.subarray(head * width, (head + 1) * width);
      const moment = moments.subarray(head * r * r, (head + 1) * r * r);
      withOnes(moment, sums.subarray(head * r, (head + 1) * r), this.tokens, own);
    }
    withLastColumn(mixed, outputs, equations.targets);
    return missing;
  }

  /**
   * The heads' outputs through W_UV.
   * @param features [H, T, r]  @param near as runAttention gave it  @param outputs of the original attention [T, D]  @param heads [T, H d], overwritten
   * @param equations features and targets of outputEquationFields, overwritten
   */
  runValues(
    features: Float32Array,
    near: Float32Array,
    outputs: Float32Array,
    heads: Float32Array,
    equations: { readonly features: Float64Array; readonly targets: Float64Array },
  ): void {
    const width = this.shape.numHeads * this.shape.headDim;
    const { hiddenDim } = this.shape;
    this.kernels.upload(this.at.features, bytesOf(features));
    this.kernels.upload(this.at.x, bytesOf(outputs));
    if (this.near !== undefined) this.kernels.upload(this.near.heads, bytesOf(near));
    this.set.run(program.outputEquations);
    this.kernels.download(this.at.heads, heads);
    const moment = this.read(program.outputEquations, 0, width ** 2);
    withOnes(moment, this.read(program.outputEquations, 1, width), this.tokens, equations.features);
    const mixed = this.read(program.outputEquations, 2, hiddenDim * width);
    withLastColumn(mixed, this.read(program.outputEquations, 3, hiddenDim), equations.targets);
  }

  /** Replaces the stream x [T, D] by the one behind the converted layer. @param heads [T, H d] */
  runAdvance(x: Float32Array, heads: Float32Array): void {
    this.kernels.upload(this.at.x, bytesOf(x));
    this.kernels.upload(this.at.heads, bytesOf(heads));
    this.set.run(program.advance);
    this.downloadStream(program.advance, 0, x);
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.queryBlocks[Symbol.dispose]();
    this.at[Symbol.dispose]();
  }

  private original(ops: Ops): Tensor[] {
    const { layer } = this;
    const { mask, positions, heads, sourceFrequencies: frequencies } = this.at;
    originalHeads(ops, this.model, this.attention, layer, this.at.x, { mask, positions, frequencies }, heads);
    const delta = ops.add(ops.matmul(layer.output, heads), layer.outputBias);
    return [delta, ...this.behind(ops, delta)];
  }

  private project(ops: Ops): Tensor[] {
    const { tokens } = this;
    const { keyUp } = this.at;
    const { numHeads, headDim, ropeDim, latentDim } = this.shape;
    const h = normed(ops, this.at.x, this.layer.attentionNorm, this.model.normEps);
    const rotated = (x: Tensor): Tensor =>
      byHead(ops, ops.rope(x, this.at.positions, this.at.frequencies, { interleaved: false, attentionFactor: 1 }));
    const flat = ops.add(ops.matmul(this.at.query, h), this.at.queryBias);
    const q = ops.reshape(flat, [tokens, numHeads, headDim + ropeDim]);
    const nope = ops.slice(q, 2, 0, headDim);
    ops.copyTo(ops.slice(this.at.queries, 2, 0, headDim), byHead(ops, nope));
    this.near?.project(ops, h, nope, this.at.positions);
    const rope = rotated(ops.contiguous(ops.slice(q, 2, headDim, ropeDim)));
    ops.copyTo(ops.slice(this.at.queries, 2, headDim, ropeDim), rope);
    const down = ops.add(ops.matmul(this.at.latentDown, h), this.at.latentDownBias);
    const latent = ops.contiguous(ops.slice(down, 1, 0, latentDim)); // [T, r]
    ops.copyTo(this.at.latentT, ops.reshape(ops.contiguous(ops.permute(latent, [1, 0])), [1, latentDim, tokens]));
    const shared = ops.contiguous(ops.slice(down, 1, latentDim, ropeDim));
    const ropeKey = rotated(ops.reshape(shared, [tokens, 1, ropeDim])); // [1, T, p]
    for (let head = 0; head < numHeads; head++) {
      const up = ops.reshape(ops.contiguous(ops.slice(keyUp, 0, head, 1)), [headDim, latentDim]);
      const own = ops.slice(this.at.keys, 0, head, 1);
      ops.copyTo(ops.slice(own, 2, 0, headDim), ops.reshape(ops.matmul(up, latent), [1, tokens, headDim]));
      ops.copyTo(ops.slice(own, 2, headDim, ropeDim), ropeKey);
    }
    return [];
  }

  /** Features of one head and some queries: A_h c. */
  private attend(ops: Ops, block: QueryBlock & { readonly head: number }): Tensor[] {
    const { head, mask } = block;
    const { start, end } = block.queries;
    const rows = end - start;
    const keys = ops.slice(ops.slice(this.at.keys, 0, head, 1), 1, 0, end);
    const own = ops.contiguous(ops.slice(ops.slice(this.at.queries, 0, head, 1), 1, start, rows));
    const { scoreScale, scoreSoftcap: cap } = this.attention;
    const scores = ops.matmul(keys, own); // [1, m, t]
    const attendAll = (): Tensor =>
      cap > 0
        ? ops.softmax(ops.softcap(ops.scale(scores, scoreScale), cap), mask, 1)
        : ops.softmax(scores, mask, scoreScale);
    const shares = this.near?.attend(ops, head, block, this.nopeOf(ops, own), scores) ?? attendAll();
    const mixed = ops.matmul(ops.slice(this.at.latentT, 2, 0, end), shares); // [1, m, r]
    ops.copyTo(ops.slice(ops.slice(this.at.features, 0, head, 1), 1, start, rows), mixed);
    return [];
  }

  /** @param queries [1, m, d + p]  @returns [1, m, d] */
  private nopeOf(ops: Ops, queries: Tensor): Tensor {
    return ops.contiguous(ops.slice(queries, 2, 0, this.shape.headDim));
  }

  /** Sums of f f^T, f, o f^T and o, f without its 1. */
  private valueEquations(ops: Ops): Tensor[] {
    const { tokens } = this;
    const { numHeads, headDim } = this.shape;
    const ones = this.onesOf(ops, [numHeads, 1, tokens]);
    const featuresT = ops.contiguous(ops.permute(this.at.features, [0, 2, 1])); // [H, r, T]
    const targets = ops.reshape(this.at.targets, [tokens, numHeads, headDim]);
    const targetsT = ops.contiguous(ops.permute(targets, [1, 2, 0])); // [H, d, T]
    const sums = [ops.matmul(featuresT, ones), ops.matmul(featuresT, targetsT), ops.matmul(targetsT, ones)];
    return [ops.matmul(featuresT, featuresT), ...sums];
  }

  /** Sums of g g^T, g, y g^T and y, g without its 1; y is in x. */
  private outputEquations(ops: Ops): Tensor[] {
    const far = this.flatHeads(ops, ops.matmul(this.at.valueUp, this.at.features));
    const heads = this.near === undefined ? far : ops.add(far, this.near.heads);
    ops.copyTo(this.at.heads, heads);
    const transposed = (x: Tensor): Tensor => ops.contiguous(ops.permute(x, [1, 0]));
    const [g, y] = [transposed(heads), transposed(this.at.x)];
    const ones = this.onesOf(ops, [1, this.tokens]);
    return [ops.matmul(g, g), ops.matmul(g, ones), ops.matmul(g, y), ops.matmul(y, ones)];
  }

  private advance(ops: Ops): Tensor[] {
    const delta = ops.add(ops.matmul(this.at.output, this.at.heads), this.at.outputBias);
    return this.behind(ops, delta);
  }

  /** The stream behind attention, and, where any layer is dense, behind a dense feed-forward part. @param delta [T, D] */
  private behind(ops: Ops, delta: Tensor): Tensor[] {
    const { layer, model } = this;
    const attended = afterAttention(ops, model, layer, this.at.x, delta);
    if (model.experts?.layers.every(Boolean) === true) return [attended];
    return [attended, afterFeedForward(ops, model, layer, attended)];
  }

  /** [H, T, d] -> [T, H d] */
  private flatHeads(ops: Ops, heads: Tensor): Tensor {
    const { numHeads, headDim } = this.shape;
    return ops.reshape(ops.contiguous(ops.permute(heads, [1, 0, 2])), [this.tokens, numHeads * headDim]);
  }

  private onesOf(ops: Ops, shape: readonly number[]): Tensor {
    const length = shape.reduce((a, b) => a * b, 1);
    return ops.reshape(ops.slice(this.at.ones, 0, 0, length), shape);
  }

  /** @param first place among the program's outputs of what `behind` returned */
  private downloadStream(index: number, first: number, x: Float32Array): void {
    this.download(index, this.layer.routes ? first : first + 1, x);
    if (this.layer.routes) this.layer.addExperts(x);
  }

  /** Until the same output is read again: large arrays made anew for every window keep the garbage collector busy. */
  private read(index: number, output: number, length: number): Float32Array {
    const key = `${index} ${output}`;
    const values = this.lastRead.get(key) ?? new Float32Array(length);
    this.lastRead.set(key, values);
    this.download(index, output, values);
    return values;
  }

  private download(index: number, output: number, into: Float32Array): void {
    const tensor = this.set.outputs[index]?.[output];
    invariant(tensor !== undefined, `program ${index} has no output ${output}`);
    this.kernels.download(tensor, into);
  }
}
