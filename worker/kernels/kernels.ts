/**
 * The operations that a rank's arithmetic is written against. Three backends implement them: reference.ts (plain loops,
 * float64 sums: the definition), ggml/ (default), gpujs/ (portable). worker/layer.ts builds programs from them once per
 * shape and runs those for every step; nothing is allocated per token.
 *
 * Shapes are written outermost first: [tokens, columns]. A tensor is row-major unless `slice` or `permute` made a view.
 * Imports nothing of ours.
 */

/** Storage types, named as GGUF names them. Arithmetic results are always f32. */
export type TensorType =
  | 'f32'
  | 'f16'
  | 'bf16'
  | 'i32'
  | 'q4_0'
  | 'q4_1'
  | 'q5_0'
  | 'q5_1'
  | 'q8_0'
  | 'q2_K'
  | 'q3_K'
  | 'q4_K'
  | 'q5_K'
  | 'q6_K'
  | 'iq4_nl';

/**
 * What a tensor will be used for. 'matmul': only ever the weight of `matmul`, 2-D, uploaded whole, never viewed; a
 * backend may then keep it in a layout of its own. 'rows': written row by row over time, perhaps never to its end; a
 * backend may then take memory as it fills. 'any': whatever the operations allow.
 */
export type TensorUse = 'any' | 'matmul' | 'rows';

/** Opaque handle of a backend's tensor. */
export interface Tensor {
  readonly type: TensorType;
  readonly shape: readonly number[];
}

/** One backend on one device. All methods are synchronous: kernel time is compute time. */
export interface Kernels extends Disposable {
  /** 'reference', 'ggml' or 'gpujs'. */
  readonly name: string;
  /** For people: 'AMD EPYC ..., sapphirerapids, 1 thread'. */
  readonly device: string;

  /** Whether `matmul` and `gatherRows` take weights of this type. Others must be converted to f32 or f16 before `allocate`. */
  supportsWeights(type: TensorType): boolean;
  /** Whether a tensor allocated for 'matmul' gets a layout of its own, in which products are faster. */
  repacks(type: TensorType, shape: readonly number[]): boolean;

  /** Memory that lives until `release` or disposal, filled with zeros. Quantised types: the last axis is a multiple of the block. */
  allocate(type: TensorType, shape: readonly number[], use?: TensorUse): Tensor;
  release(tensors: readonly Tensor[]): void;
  /** Memory that an allocated tensor takes, in bytes, as the backend stores it: gpu.js and reference keep floats as f32. */
  sizeOf(tensor: Tensor): number;

  /** Copies bytes in the tensor's own storage type; `offsetBytes` from its start. Only for what `allocate` returned. */
  upload(tensor: Tensor, bytes: Uint8Array, offsetBytes?: number): void;
  /** Reads an f32 tensor (allocated, or an output of a program that has just run) into `out`, from element 0, `out.length` elements. */
  download(tensor: Tensor, out: Float32Array): void;

  /**
   * Records one program per builder. The programs share scratch memory: outputs of one are lost when the next runs;
   * what must survive goes through `scatterRows` or `copyTo` into an allocated tensor.
   */
  compile(builders: readonly ProgramBuilder[]): ProgramSet;
}

/** Records operations and returns the tensors that will be downloaded. */
export type ProgramBuilder = (ops: Ops) => readonly Tensor[];

export interface ProgramSet extends Disposable {
  /** Outputs of each builder, in its order. */
  readonly outputs: readonly (readonly Tensor[])[];
  run(index: number): void;
}

/** Operations of a program under construction. Inputs are allocated tensors or results of earlier operations. */
export interface Ops {
  /**
   * y[b, t, m] = sum_k weight[b, m, k] * x[b, t, k]. Both 2-D or both 3-D; in 3-D, x may have a multiple of weight's
   * batches: batch b of x reads batch floor(b * Bw / Bx) of weight. Weight may be quantised and may be a view whose rows are contiguous.
   */
  matmul(weight: Tensor, x: Tensor): Tensor;
  /**
   * Products with the experts that each token chose: y[t, j, m] = sum_k weights[ids[t, j], m, k] * x[t, j, k]; where x has one
   * row per token, every slot j reads it. Weights may be quantised. Ids outside 0 .. experts - 1 are the caller's mistake.
   * @param weights [experts, m, k] allocated  @param x [tokens, slots or 1, k]  @param ids [tokens, slots] i32
   * @returns [tokens, slots, m]
   */
  expertMatmul(weights: Tensor, x: Tensor, ids: Tensor): Tensor;
  /** y[t, m] = sum_j shares[t, j] * x[t, j, m]. @param x [tokens, slots, m]  @param shares [tokens, slots] */
  weightedSum(x: Tensor, shares: Tensor): Tensor;
  /** Element-wise; b has a's shape or its trailing axes (broadcast over leading ones). */
  add(a: Tensor, b: Tensor): Tensor;
  multiply(a: Tensor, b: Tensor): Tensor;
  scale(x: Tensor, factor: number): Tensor;
  /** x / sqrt(mean(x^2) + eps) over the last axis. The learned gain is a `multiply` of its own. */
  rmsNorm(x: Tensor, eps: number): Tensor;
  /**
   * Rotates pairs of the last axis of x [tokens, heads, dim] by positions[t] * frequencies[i], cos and sin times attentionFactor.
   * @param positions [tokens] i32  @param frequencies [dim / 2] f32
   */
  rope(x: Tensor, positions: Tensor, frequencies: Tensor, options: RopeOptions): Tensor;
  /** activation(gate) * up */
  gated(gate: Tensor, up: Tensor, activation: 'silu' | 'gelu-tanh'): Tensor;
  /** softcap * tanh(x / softcap) */
  softcap(x: Tensor, softcap: number): Tensor;
  /**
   * softmax(cap(scale * q keys^T) + mask) values. Query head h reads batch floor(h * G / H) of keys and values.
   * keys and values may be views (slices of cache rows) and of type f32, f16 or, where the backend has it, q8_0. Few queries are fastest where values is a
   * permuted view of [G, dv, S].
   * @param q [H, T, dk] f32  @param keys [G, S, dk]  @param values [G, S, dv]
   * @param mask [T, S] f32: 0 or -Infinity; or [G, T, S], where each batch of keys has its own
   * @returns [H, T, dv]
   */
  attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, options: AttendOptions): Tensor;
  /**
   * `attend` over a part of the positions. With logSumExp, the logarithm of the sum of exp of the scaled, capped and
   * masked scores, the parts are merged exactly (online softmax, arXiv 1805.02867, section 3).
   * @param mask [T, S] or [G, T, S]
   * @returns out [H, T, dv], logSumExp [H, T]; where no position is visible: zeros, and a finite number below -1e29
   */
  attendPartial(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, options: AttendOptions): PartialAttention;
  /**
   * The second half of `attend`: softmax(cap(scale * scores) + mask) values, for scores that were summed over ranks.
   * @param scores [H, T, S] f32  @param values [G, S, dv]  @param mask [T, S]  @returns [H, T, dv]
   */
  attendScores(scores: Tensor, values: Tensor, mask: Tensor, options: AttendOptions): Tensor;
  /** softmax(scale * x + mask) over the last axis of x [H, T, S], mask [T, S]. */
  softmax(x: Tensor, mask: Tensor, scale: number): Tensor;
  /** target[indices[t], :] = rows[t, :], converted to target's type (f32, f16, q8_0). target is 2-D and allocated. */
  scatterRows(target: Tensor, rows: Tensor, indices: Tensor): void;
  /** table [V, D] (any weight type), indices [T] i32 -> [T, D] f32 */
  gatherRows(table: Tensor, indices: Tensor): Tensor;
  /** Writes x into the allocated tensor `target` (or a slice of it) of the same shape. */
  copyTo(target: Tensor, x: Tensor): void;

  /** Same elements, other shape; x must be contiguous. */
  reshape(x: Tensor, shape: readonly number[]): Tensor;
  /** View: elements start .. start + length of one axis. */
  slice(x: Tensor, axis: number, start: number, length: number): Tensor;
  /** View: axis i of the result is axis order[i] of x. */
  permute(x: Tensor, order: readonly number[]): Tensor;
  /** Row-major copy of a view. */
  contiguous(x: Tensor): Tensor;
  /** Joins along an axis; all f32. */
  concat(parts: readonly Tensor[], axis: number): Tensor;
}

export interface RopeOptions {
  /** true: pairs (2i, 2i+1); false: (i, i + dim/2). */
  readonly interleaved: boolean;
  readonly attentionFactor: number;
}

export interface PartialAttention {
  readonly out: Tensor;
  readonly logSumExp: Tensor;
}

export interface AttendOptions {
  readonly scale: number;
  /** 0: none. Applied to the scaled scores before the mask. */
  readonly softcap: number;
}
