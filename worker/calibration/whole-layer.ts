/**
 * The whole weights of one layer at a time, for calibration: ranks divide windows, not heads, so each runs every layer
 * in full. Tensors are allocated once and filled again for each layer; peak memory is one layer. Attention is
 * float32; the feed-forward part is 8-bit where the backend can.
 * Experts are in routed-part.ts.
 */
import { invariant } from '../../config/errors.ts';
import { routes, type GqaConfig, type ModelConfig } from '../../config/model-config.ts';
import type { Checkpoint, LayerRole } from '../../model/checkpoint.ts';
import { fromFloat32, toFloat32 } from '../../model/dequantize.ts';
import { weightLayout } from '../../model/tensor-types.ts';
import type { Backend } from '../backend.ts';
import type { Ops, ProgramSet, Tensor, TensorUse } from '../kernels/kernels.ts';
import { normRows } from '../post-norm.ts';
import { bytesOf } from '../rank-parts.ts';
import { RoutedPart } from './routed-part.ts';

type FeedForwardType = 'q8_0' | 'f16' | 'f32';

export class WholeLayer implements Disposable {
  readonly attentionNorm: Tensor; // [D]
  readonly query: Tensor; // [H d, D]
  readonly queryBias: Tensor; // [H d], zeros where the source has none; so are all biases
  readonly key: Tensor; // [G d, D]
  readonly keyBias: Tensor; // [G d]
  readonly value: Tensor; // [G d, D]
  readonly valueBias: Tensor; // [G d]
  readonly output: Tensor; // [D, H d]
  readonly outputBias: Tensor; // [D]
  /** W_O,h^T W_O,h of every head: what a difference of its values weighs in the residual stream. [H, d, d] */
  readonly outputGrams: Tensor;
  /** Mean of the diagonal of each head's Gram matrix. [H] */
  readonly gramMeans: Float64Array;
  readonly feedForwardNorm: Tensor; // [D]
  /** Of dense layers; layers that route leave them as they were. */
  readonly gate: Tensor; // [F, D]
  readonly up: Tensor; // [F, D]
  readonly down: Tensor; // [D, F]
  /** Gains of the norms behind the sublayers; undefined: the model has none. */
  readonly postNorms: { readonly attention: Tensor; readonly feedForward: Tensor } | undefined; // [D]

  private readonly checkpoint: Checkpoint;
  private readonly backend: Backend;
  private readonly feedForwardType: FeedForwardType;
  private readonly tensors: Tensor[] = [];
  private readonly routed: RoutedPart | undefined;
  private readonly outputFloats: Tensor; // [D, H d]
  private readonly gramProgram: ProgramSet;
  private loaded = 0;
  private feedForwardGain: Float32Array | undefined; // [D]

  constructor(checkpoint: Checkpoint, backend: Backend, attention: GqaConfig) {
    this.checkpoint = checkpoint;
    this.backend = backend;
    const model = checkpoint.config;
    const { hiddenDim: hidden, numHeads, feedForward } = model;
    const queryDim = numHeads * attention.headDim;
    const keyDim = attention.numKvHeads * attention.headDim;
    this.feedForwardType = feedForwardTypeFor(model, backend);
    this.attentionNorm = this.allocate([hidden]);
    this.query = this.allocate([queryDim, hidden]);
    this.queryBias = this.allocate([queryDim]);
    this.key = this.allocate([keyDim, hidden]);
    this.keyBias = this.allocate([keyDim]);
    this.value = this.allocate([keyDim, hidden]);
    this.valueBias = this.allocate([keyDim]);
    this.output = this.allocate([hidden, queryDim]);
    this.outputFloats = this.allocate([hidden, queryDim]);
    this.outputBias = this.allocate([hidden]);
    this.outputGrams = this.allocate([numHeads, attention.headDim, attention.headDim]);
    this.gramMeans = new Float64Array(numHeads);
    this.feedForwardNorm = this.allocate([hidden]);
    // A model whose layers all route has no dense part; one block keeps the type.
    const dense = model.experts?.layers.every(Boolean) === true ? weightLayout('q8_0').blockSize : feedForward.dim;
    this.gate = this.allocate([dense, hidden], this.feedForwardType, 'matmul');
    this.up = this.allocate([dense, hidden], this.feedForwardType, 'matmul');
    this.down = this.allocate([hidden, dense], this.feedForwardType, 'matmul');
    this.postNorms = model.postNorms
      ? { attention: this.allocate([hidden]), feedForward: this.allocate([hidden]) }
      : undefined;
    this.routed = model.experts === null ? undefined : new RoutedPart(checkpoint, backend);
    this.gramProgram = backend.kernels.compile([(ops) => this.grams(ops)]);
  }

  /** Positions that a token of the loaded layer sees, its own included; 0: all. */
  get window(): number {
    return this.checkpoint.config.slidingWindows[this.loaded] ?? 0;
  }

  /** Whether the loaded layer routes to experts: its feed-forward part is `addExperts`. */
  get routes(): boolean {
    return routes(this.checkpoint.config, this.loaded);
  }

  async load(layer: number): Promise<void> {
    this.loaded = layer;
    for (const role of ['attentionNorm', 'feedForwardNorm'] as const)
      this.upload(this[role], await this.floats(role, layer));
    for (const role of ['query', 'key', 'value'] as const) this.upload(this[role], await this.floats(role, layer));
    const output = await this.floats('output', layer);
    this.upload(this.output, output);
    this.upload(this.outputFloats, output);
    this.computeGrams();
    for (const role of ['queryBias', 'keyBias', 'valueBias', 'outputBias'] as const)
      if (this.checkpoint.shapeOf(role, layer) !== undefined) this.upload(this[role], await this.floats(role, layer));
    if (this.postNorms !== undefined) {
      this.upload(this.postNorms.attention, await this.floats('attentionPostNorm', layer));
      this.feedForwardGain = await this.floats('feedForwardPostNorm', layer);
      this.upload(this.postNorms.feedForward, this.feedForwardGain);
    }
    if (this.routes) await this.routed?.load(layer, this.feedForwardNorm);
    else for (const role of ['gate', 'up', 'down'] as const) await this.loadFeedForward(role, layer);
  }

  /** The feed-forward part of a layer that routes. @param x [T, D] the stream behind attention, updated */
  addExperts(x: Float32Array): void {
    const delta = new Float32Array(x.length);
    this.routed?.run(x, delta);
    if (this.feedForwardGain !== undefined) normRows(delta, this.feedForwardGain, this.checkpoint.config.normEps);
    for (let i = 0; i < x.length; i++) x[i] = (x[i] ?? 0) + (delta[i] ?? 0);
  }

  [Symbol.dispose](): void {
    this.routed?.[Symbol.dispose]();
    this.gramProgram[Symbol.dispose]();
    this.backend.kernels.release(this.tensors);
  }

  private allocate(shape: readonly number[], type: FeedForwardType = 'f32', use: TensorUse = 'any'): Tensor {
    const tensor = this.backend.kernels.allocate(type, shape, use);
    this.tensors.push(tensor);
    return tensor;
  }

  private upload(tensor: Tensor, values: Float32Array): void {
    this.backend.kernels.upload(tensor, bytesOf(values));
  }

  private async floats(role: LayerRole, layer: number): Promise<Float32Array> {
    return toFloat32(await this.checkpoint.read(role, layer));
  }

  private async loadFeedForward(role: 'gate' | 'up' | 'down', layer: number): Promise<void> {
    const weight = await this.checkpoint.read(role, layer);
    const { kernels, quantize } = this.backend;
    const values = toFloat32(weight);
    if (this.feedForwardType !== 'q8_0') return kernels.upload(this[role], fromFloat32(values, this.feedForwardType));
    invariant(quantize !== undefined, 'an 8-bit feed-forward part without a quantiser');
    kernels.upload(this[role], quantize('q8_0', values, weight.rows, weight.cols));
  }

  /** From the uploaded W_O. */
  private computeGrams(): void {
    this.gramProgram.run(0);
    const [numHeads = 0, headDim = 0] = this.outputGrams.shape;
    const grams = new Float32Array(numHeads * headDim * headDim);
    this.backend.kernels.download(this.outputGrams, grams);
    for (let head = 0; head < numHeads; head++) {
      let trace = 0;
      for (let i = 0; i < headDim; i++) trace += grams[(head * headDim + i) * headDim + i] ?? 0;
      this.gramMeans[head] = trace / headDim;
    }
  }

  private grams(ops: Ops): Tensor[] {
    const [numHeads = 0, headDim = 0] = this.outputGrams.shape;
    const [hidden = 0] = this.output.shape;
    const columns = ops.contiguous(ops.permute(this.outputFloats, [1, 0])); // [H d, D]
    const perHead = ops.reshape(columns, [numHeads, headDim, hidden]);
    ops.copyTo(this.outputGrams, ops.matmul(perHead, perHead));
    return [];
  }
}

function feedForwardTypeFor({ hiddenDim, feedForward }: ModelConfig, { kernels, quantize }: Backend): FeedForwardType {
  const { blockSize } = weightLayout('q8_0');
  const wholeBlocks = hiddenDim % blockSize === 0 && feedForward.dim % blockSize === 0;
  if (quantize !== undefined && wholeBlocks && kernels.supportsWeights('q8_0')) return 'q8_0';
  return kernels.supportsWeights('f16') ? 'f16' : 'f32';
}
