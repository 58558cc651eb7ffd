/**
 * What the programs of one window's statistics share: constant tables, and what one program leaves for the next.
 * Read next: statistics-programs.ts (fills it), pair-program.ts (the middle).
 */
import type { GqaConfig, ModelConfig } from '../../config/model-config.ts';
import type { Kernels, Tensor } from '../kernels/kernels.ts';
import { bytesOf } from '../rank-parts.ts';
import { movingRows } from './value-moves.ts';
import { angleRows, rotations } from './window-tables.ts';

/** Inner sizes of products are padded to this: ggml's fast product takes no others. */
const innerBlock = 16;

export class WindowTensors implements Disposable {
  readonly x: Tensor; // [T, D]
  /** Keys before RoPE, then values. [2 G d, T] */
  readonly keyValueT: Tensor;
  readonly queries: Tensor; // [H, T, d] rotated
  readonly plainQueriesT: Tensor; // [H, d, T] before RoPE
  readonly keys: Tensor; // [G, T, d] rotated
  /** Left sides of value-moves.ts. [H, T, width] */
  readonly moving: Tensor;
  readonly heads: Tensor; // [T, H d]
  /** Sums over queries of w and of p^2. [H, T] */
  readonly omegas: Tensor;
  readonly squares: Tensor;
  /** Sums over keys of w. [H, T] */
  readonly queryWeights: Tensor;
  /** Sums of w exp(i theta (m - t)) in parts that add up to real and imaginary part. [H, 2, d] */
  readonly phases: Tensor;

  readonly gramMeans: Tensor; // [H, T] every row one number
  readonly ones: Tensor; // [max(T, d)]
  readonly zeros: Tensor; // [T]
  readonly noMoves: Tensor; // [1, T, width - d - 2] zeros
  readonly positions: Tensor; // [T] i32
  readonly frequencies: Tensor; // [d / 2]
  /** Rows cos(theta_l t), rows sin(theta_l t). [1, d, T] */
  readonly angles: Tensor;
  /** Rows [cos, sin] and [sin, -cos] of theta_l m. [T, d] */
  readonly forReal: Tensor;
  readonly forImaginary: Tensor;

  private readonly kernels: Kernels;
  private readonly tensors: Tensor[] = [];

  constructor(kernels: Kernels, model: ModelConfig, attention: GqaConfig, tokens: number) {
    this.kernels = kernels;
    const { hiddenDim: hidden, numHeads, rope } = model;
    const { headDim, numKvHeads } = attention;
    const width = movingWidth(headDim);
    this.x = this.allocate([tokens, hidden]);
    this.keyValueT = this.allocate([2 * numKvHeads * headDim, tokens]);
    this.queries = this.allocate([numHeads, tokens, headDim]);
    this.plainQueriesT = this.allocate([numHeads, headDim, tokens]);
    this.keys = this.allocate([numKvHeads, tokens, headDim]);
    this.moving = this.constant([numHeads, tokens, width], movingRows(numHeads * tokens, width, headDim));
    this.heads = this.allocate([tokens, numHeads * headDim]);
    this.omegas = this.allocate([numHeads, tokens]);
    this.squares = this.allocate([numHeads, tokens]);
    this.queryWeights = this.allocate([numHeads, tokens]);
    this.phases = this.allocate([numHeads, 2, headDim]);
    this.gramMeans = this.allocate([numHeads, tokens]);
    this.ones = this.constant([Math.max(tokens, headDim)], new Float32Array(Math.max(tokens, headDim)).fill(1));
    this.zeros = this.allocate([tokens]);
    this.noMoves = this.allocate([1, tokens, width - headDim - 2]);
    this.positions = this.allocate([tokens], 'i32');
    kernels.upload(this.positions, bytesOf(Int32Array.from({ length: tokens }, (_, t) => t)));
    this.frequencies = this.constant([headDim / 2], Float32Array.from(rope.frequencies));
    this.angles = this.constant([1, headDim, tokens], angleRows(rope.frequencies, tokens));
    const { forReal, forImaginary } = rotations(rope.frequencies, tokens);
    this.forReal = this.constant([tokens, headDim], forReal);
    this.forImaginary = this.constant([tokens, headDim], forImaginary);
  }

  /** Sets what blocks add to to zero. */
  clearSums(): void {
    for (const sum of [this.omegas, this.squares, this.phases])
      this.kernels.upload(sum, bytesOf(new Float32Array(sum.shape.reduce((a, b) => a * b, 1))));
  }

  [Symbol.dispose](): void {
    this.kernels.release(this.tensors);
  }

  private constant(shape: readonly number[], values: Float32Array): Tensor {
    const tensor = this.allocate(shape);
    this.kernels.upload(tensor, bytesOf(values));
    return tensor;
  }

  private allocate(shape: readonly number[], type: 'f32' | 'i32' = 'f32'): Tensor {
    const tensor = this.kernels.allocate(type, shape);
    this.tensors.push(tensor);
    return tensor;
  }
}

/** Of the rows whose products say how far values move: d numbers and two more, padded. */
function movingWidth(headDim: number): number {
  return Math.ceil((headDim + 2) / innerBlock) * innerBlock;
}
