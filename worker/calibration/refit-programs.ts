/**
 * What a layer-by-layer refit computes of one layer on one window: the original layer on the original stream (its heads'
 * outputs are the targets), the converted attention on the converted stream, the normal equations of W_UV and W_O, and
 * the converted stream behind the layer. Feed-forward weights are those of the source for both streams.
 * Scores are taken against keys of d numbers per head (c W_UK), not absorbed: r is larger than d. Queries go in blocks,
 * which see no key behind them. Formulas: model/transmla/refit.ts. Read next: refit-session.ts.
 */
import { invariant } from '../../config/errors.ts';
import type { GqaConfig, ModelConfig } from '../../config/model-config.ts';
import { cut, type Range } from '../../config/shard-plan.ts';
import type { RefitShape } from '../../collective/refit-maps.ts';
import type { Kernels, Ops, ProgramSet, Tensor } from '../kernels/kernels.ts';
import { normed } from '../layer.ts';
import { bytesOf } from '../rank-parts.ts';
import { afterAttention, afterFeedForward, byHead } from './operation-helpers.ts';
import { originalHeads } from './original-heads.ts';
import { wholeMask } from './window-tables.ts';
import type { WholeLayer } from './whole-layer.ts';

const queryBlocksOfWindow = 4;

const program = { original: 0, project: 1, valueEquations: 2, outputEquations: 3, advance: 4, firstBlock: 5 } as const;

export class RefitPrograms implements Disposable {
  /** Maps of the converted layer, uploaded by the session. */
  readonly query: Tensor; // [H (d + p), D]
  readonly queryBias: Tensor; // [H (d + p)]
  readonly latentDown: Tensor; // [r + p, D]
  readonly latentDownBias: Tensor; // [r + p]
  readonly keyUp: Tensor; // [H, d, r]
  readonly frequencies: Tensor; // [p / 2]
  readonly valueUp: Tensor; // [H, d, r]
  readonly output: Tensor; // [D, H d]
  readonly outputBias: Tensor; // [D]

  private readonly kernels: Kernels;
  private readonly model: ModelConfig;
  private readonly attention: GqaConfig;
  private readonly layer: WholeLayer;
  private readonly shape: RefitShape;
  private readonly tokens: number;
  private readonly tensors: Tensor[] = [];
  private readonly x: Tensor; // [T, D]
  private readonly targets: Tensor; // [T, H d] the original heads' outputs
  private readonly heads: Tensor; // [T, H d] the refitted heads' outputs
  private readonly features: Tensor; // [H, T, r]
  private readonly queries: Tensor; // [H, T, d + p]
  private readonly keys: Tensor; // [H, T, d + p]
  private readonly latentT: Tensor; // [1, r, T]
  private readonly mask: Tensor; // [T, T]
  private maskWindow = 0;
  private readonly ones: Tensor; // [T]
  private readonly positions: Tensor; // [T] i32
  private readonly sourceFrequencies: Tensor; // [d / 2]
  private readonly set: ProgramSet;

  constructor(
    kernels: Kernels,
    model: ModelConfig,
    attention: GqaConfig,
    layer: WholeLayer,
    shape: RefitShape,
    tokens: number,
  ) {
    this.kernels = kernels;
    this.model = model;
    this.attention = attention;
    this.layer = layer;
    this.shape = shape;
    this.tokens = tokens;
    const { hiddenDim: hidden, numHeads, headDim, ropeDim, latentDim } = shape;
    const width = headDim + ropeDim;
    this.query = this.allocate([numHeads * width, hidden]);
    this.queryBias = this.allocate([numHeads * width]);
    this.latentDown = this.allocate([latentDim + ropeDim, hidden]);
    this.latentDownBias = this.allocate([latentDim + ropeDim]);
    this.keyUp = this.allocate([numHeads, headDim, latentDim]);
    this.frequencies = this.allocate([ropeDim / 2]);
    this.valueUp = this.allocate([numHeads, headDim, latentDim]);
    this.output = this.allocate([hidden, numHeads * headDim]);
    this.outputBias = this.allocate([hidden]);
    this.x = this.allocate([tokens, hidden]);
    this.targets = this.allocate([tokens, numHeads * headDim]);
    this.heads = this.allocate([tokens, numHeads * headDim]);
    this.features = this.allocate([numHeads, tokens, latentDim]);
    this.queries = this.allocate([numHeads, tokens, width]);
    this.keys = this.allocate([numHeads, tokens, width]);
    this.latentT = this.allocate([1, latentDim, tokens]);
    this.mask = this.allocate([tokens, tokens]);
    this.ones = this.allocate([tokens]);
    this.positions = this.allocate([tokens], 'i32');
    this.sourceFrequencies = this.allocate([headDim / 2]);
    this.uploadConstants();
    const blocks = cut(tokens, new Array<number>(Math.min(queryBlocksOfWindow, tokens)).fill(1), 1);
    this.set = kernels.compile([
      (ops) => this.original(ops),
      (ops) => this.project(ops),
      (ops) => this.valueEquations(ops),
      (ops) => this.outputEquations(ops),
      (ops) => this.advance(ops),
      ...blocks.map(
        (queries) =>
          (ops: Ops): Tensor[] =>
            this.attend(ops, queries),
      ),
    ]);
    this.blocks = blocks.length;
  }

  private readonly blocks: number;

  /** Starts a layer, whose weights are loaded. */
  begin(): void {
    if (this.layer.window === this.maskWindow) return;
    this.maskWindow = this.layer.window;
    this.kernels.upload(this.mask, bytesOf(wholeMask(this.tokens, this.maskWindow)));
  }

  /** The original layer: replaces the stream x [T, D] by the one behind it. @param heads [T, H d], overwritten */
  runOriginal(x: Float32Array, heads: Float32Array): void {
    this.kernels.upload(this.x, bytesOf(x));
    this.set.run(program.original);
    this.download(program.original, 0, heads);
    this.downloadStream(program.original, 1, x);
  }

  /**
   * The converted attention on x [T, D].
   * @param targets [T, H d]  @param features [H, T, r], overwritten
   * @param sums of f f^T and o f^T, overwritten: [H, r + 1, r + 1], [H, d, r + 1]
   */
  runAttention(
    x: Float32Array,
    targets: Float32Array,
    features: Float32Array,
    sums: readonly [Float32Array, Float32Array],
  ): void {
    this.kernels.upload(this.x, bytesOf(x));
    this.kernels.upload(this.targets, bytesOf(targets));
    this.set.run(program.project);
    for (let block = 0; block < this.blocks; block++) this.set.run(program.firstBlock + block);
    this.kernels.download(this.features, features);
    this.set.run(program.valueEquations);
    sums.forEach((sum, i) => this.download(program.valueEquations, i, sum));
  }

  /**
   * The heads' outputs through W_UV.
   * @param features [H, T, r]  @param targets [T, H d]  @param heads [T, H d], overwritten
   * @param sums of g g^T, o g^T and o o^T, overwritten: [H d + 1, H d + 1] each
   */
  runValues(
    features: Float32Array,
    targets: Float32Array,
    heads: Float32Array,
    sums: readonly [Float32Array, Float32Array, Float32Array],
  ): void {
    this.kernels.upload(this.features, bytesOf(features));
    this.kernels.upload(this.targets, bytesOf(targets));
    this.set.run(program.outputEquations);
    sums.forEach((sum, i) => this.download(program.outputEquations, i, sum));
    this.kernels.download(this.heads, heads);
  }

  /** Replaces the stream x [T, D] by the one behind the converted layer. @param heads [T, H d] */
  runAdvance(x: Float32Array, heads: Float32Array): void {
    this.kernels.upload(this.x, bytesOf(x));
    this.kernels.upload(this.heads, bytesOf(heads));
    this.set.run(program.advance);
    this.downloadStream(program.advance, 0, x);
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.kernels.release(this.tensors);
  }

  private original(ops: Ops): Tensor[] {
    const { layer, mask, positions, sourceFrequencies: frequencies } = this;
    const out = originalHeads(ops, this.model, this.attention, layer, this.x, { mask, positions, frequencies });
    const heads = this.flatHeads(ops, out);
    return [heads, ...this.behind(ops, ops.add(ops.matmul(layer.output, heads), layer.outputBias))];
  }

  private project(ops: Ops): Tensor[] {
    const { tokens, keyUp } = this;
    const { numHeads, headDim, ropeDim, latentDim } = this.shape;
    const h = normed(ops, this.x, this.layer.attentionNorm, this.model.normEps);
    const rotated = (x: Tensor): Tensor =>
      byHead(ops, ops.rope(x, this.positions, this.frequencies, { interleaved: false, attentionFactor: 1 }));
    const flat = ops.add(ops.matmul(this.query, h), this.queryBias);
    const q = ops.reshape(flat, [tokens, numHeads, headDim + ropeDim]);
    const nope = byHead(ops, ops.slice(q, 2, 0, headDim));
    const rope = rotated(ops.contiguous(ops.slice(q, 2, headDim, ropeDim)));
    ops.copyTo(this.queries, ops.concat([nope, rope], 2));
    const down = ops.add(ops.matmul(this.latentDown, h), this.latentDownBias);
    const latent = ops.contiguous(ops.slice(down, 1, 0, latentDim)); // [T, r]
    ops.copyTo(this.latentT, ops.reshape(ops.contiguous(ops.permute(latent, [1, 0])), [1, latentDim, tokens]));
    const shared = ops.contiguous(ops.slice(down, 1, latentDim, ropeDim));
    const ropeKey = rotated(ops.reshape(shared, [tokens, 1, ropeDim])); // [1, T, p]
    const perHead = Array.from({ length: numHeads }, (_, head) => {
      const up = ops.reshape(ops.contiguous(ops.slice(keyUp, 0, head, 1)), [headDim, latentDim]);
      const key = ops.reshape(ops.matmul(up, latent), [1, tokens, headDim]);
      return ops.concat([key, ropeKey], 2);
    });
    ops.copyTo(this.keys, ops.concat(perHead, 0));
    return [];
  }

  /** features of some queries: A_h c. */
  private attend(ops: Ops, { start, end }: Range): Tensor[] {
    const rows = end - start;
    const keys = ops.contiguous(ops.slice(this.keys, 1, 0, end));
    const queries = ops.contiguous(ops.slice(this.queries, 1, start, rows));
    const mask = ops.contiguous(ops.slice(ops.slice(this.mask, 0, start, rows), 1, 0, end));
    const { scoreScale, scoreSoftcap: cap } = this.attention;
    const scores = ops.matmul(keys, queries); // [H, m, t]
    const shares =
      cap > 0
        ? ops.softmax(ops.softcap(ops.scale(scores, scoreScale), cap), mask, 1)
        : ops.softmax(scores, mask, scoreScale);
    const mixed = ops.matmul(ops.contiguous(ops.slice(this.latentT, 2, 0, end)), shares); // [H, m, r]
    ops.copyTo(ops.slice(this.features, 1, start, rows), mixed);
    return [];
  }

  private valueEquations(ops: Ops): Tensor[] {
    const { tokens } = this;
    const { numHeads, headDim } = this.shape;
    const ones = ops.reshape(this.ones, [1, tokens, 1]);
    const perHead = ops.concat(
      Array.from({ length: numHeads }, () => ones),
      0,
    );
    const features = ops.concat([this.features, perHead], 2); // [H, T, r + 1]
    const featuresT = ops.contiguous(ops.permute(features, [0, 2, 1]));
    const targets = ops.reshape(this.targets, [tokens, numHeads, headDim]);
    const targetsT = ops.contiguous(ops.permute(targets, [1, 2, 0])); // [H, d, T]
    return [ops.matmul(featuresT, featuresT), ops.matmul(featuresT, targetsT)];
  }

  private outputEquations(ops: Ops): Tensor[] {
    const heads = this.flatHeads(ops, ops.matmul(this.valueUp, this.features));
    ops.copyTo(this.heads, heads);
    const withOnesT = (x: Tensor): Tensor =>
      ops.contiguous(ops.permute(ops.concat([x, ops.reshape(this.ones, [this.tokens, 1])], 1), [1, 0]));
    const [g, o] = [withOnesT(heads), withOnesT(this.targets)];
    return [ops.matmul(g, g), ops.matmul(g, o), ops.matmul(o, o)];
  }

  private advance(ops: Ops): Tensor[] {
    const delta = ops.add(ops.matmul(this.output, this.heads), this.outputBias);
    return this.behind(ops, delta);
  }

  /** The stream behind attention, and, where any layer is dense, behind a dense feed-forward part. @param delta [T, D] */
  private behind(ops: Ops, delta: Tensor): Tensor[] {
    const { layer, model } = this;
    const attended = afterAttention(ops, model, layer, this.x, delta);
    if (model.experts?.layers.every(Boolean) === true) return [attended];
    return [attended, afterFeedForward(ops, model, layer, attended)];
  }

  /** [H, T, d] -> [T, H d] */
  private flatHeads(ops: Ops, heads: Tensor): Tensor {
    const { numHeads, headDim } = this.shape;
    return ops.reshape(ops.contiguous(ops.permute(heads, [1, 0, 2])), [this.tokens, numHeads * headDim]);
  }

  private uploadConstants(): void {
    const { kernels, tokens } = this;
    kernels.upload(this.ones, bytesOf(new Float32Array(tokens).fill(1)));
    kernels.upload(this.positions, bytesOf(Int32Array.from({ length: tokens }, (_, t) => t)));
    kernels.upload(this.mask, bytesOf(wholeMask(tokens)));
    kernels.upload(this.sourceFrequencies, bytesOf(Float32Array.from(this.model.rope.frequencies)));
  }

  private allocate(shape: readonly number[], type: 'f32' | 'i32' = 'f32'): Tensor {
    const tensor = this.kernels.allocate(type, shape);
    this.tensors.push(tensor);
    return tensor;
  }

  /** @param first place among the program's outputs of what `behind` returned */
  private downloadStream(index: number, first: number, x: Float32Array): void {
    this.download(index, this.layer.routes ? first : first + 1, x);
    if (this.layer.routes) this.layer.addExperts(x);
  }

  private download(index: number, output: number, into: Float32Array): void {
    const tensor = this.set.outputs[index]?.[output];
    invariant(tensor !== undefined, `program ${index} has no output ${output}`);
    this.kernels.download(tensor, into);
  }
}
