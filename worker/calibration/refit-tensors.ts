/**
 * What the programs of a refit share: the maps of the converted layer, which the session uploads, what one program leaves
 * for the next, and constant tables. Read next: refit-programs.ts.
 */
import type { ModelConfig } from '../../config/model-config.ts';
import type { RefitShape } from '../../collective/refit-maps.ts';
import type { Kernels, Tensor } from '../kernels/kernels.ts';
import { bytesOf } from '../rank-parts.ts';
import { wholeMask } from './window-tables.ts';

export class RefitTensors implements Disposable {
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

  readonly x: Tensor; // [T, D]
  readonly targets: Tensor; // [T, H d] the original heads' outputs
  readonly heads: Tensor; // [T, H d] the refitted heads' outputs
  readonly features: Tensor; // [H, T, r]
  readonly queries: Tensor; // [H, T, d + p]
  readonly keys: Tensor; // [H, T, d + p]
  readonly latentT: Tensor; // [1, r, T]
  readonly mask: Tensor; // [T, T]
  readonly ones: Tensor; // [H T]
  readonly positions: Tensor; // [T] i32
  readonly sourceFrequencies: Tensor; // [d / 2]

  private readonly kernels: Kernels;
  private readonly tensors: Tensor[] = [];

  constructor(kernels: Kernels, model: ModelConfig, shape: RefitShape, tokens: number) {
    this.kernels = kernels;
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
    this.ones = this.allocate([numHeads * tokens]);
    this.positions = this.allocate([tokens], 'i32');
    this.sourceFrequencies = this.allocate([headDim / 2]);
    this.uploadConstants(model, tokens);
  }

  [Symbol.dispose](): void {
    this.kernels.release(this.tensors);
  }

  private uploadConstants({ rope }: ModelConfig, tokens: number): void {
    const { kernels } = this;
    kernels.upload(this.ones, bytesOf(new Float32Array(this.ones.shape.reduce((a, b) => a * b, 1)).fill(1)));
    kernels.upload(this.positions, bytesOf(Int32Array.from({ length: tokens }, (_, t) => t)));
    kernels.upload(this.mask, bytesOf(wholeMask(tokens)));
    kernels.upload(this.sourceFrequencies, bytesOf(Float32Array.from(rope.frequencies)));
  }

  private allocate(shape: readonly number[], type: 'f32' | 'i32' = 'f32'): Tensor {
    const tensor = this.kernels.allocate(type, shape);
    this.tensors.push(tensor);
    return tensor;
  }
}
