/**
 * Moves slices of a checkpoint into tensors of the backend, in the storage type that the user asked for or that the
 * file has. What a backend cannot compute with, and what would be cut inside a quantisation block, becomes float.
 */
import { ConfigError, invariant } from '../config/errors.ts';
import { size, type Range } from '../config/shard-plan.ts';
import type { Checkpoint, LayerRole, ModelRole, Weight, WeightType } from '../model/checkpoint.ts';
import { weightLayout } from '../model/tensor-types.ts';
import { fromFloat32, toFloat32 } from '../model/dequantize.ts';
import type { Kernels, Tensor, TensorUse } from './kernels/kernels.ts';
import { columnsOf } from './matrix-products.ts';
import type { WorkerOptions } from '../collective/setup.ts';

/** Packs rows of float32 into a quantised type. @param values [rows, cols] */
export type Quantize = (type: WeightType, values: Float32Array, rows: number, cols: number) => Uint8Array;

export class WeightUploader {
  /** Bytes handed to the backend so far. */
  uploadedBytes = 0;
  readonly checkpoint: Checkpoint;
  private readonly kernels: Kernels;
  private readonly storage: WorkerOptions['weights'];
  private readonly quantize: Quantize | undefined;

  /** @param quantize absent where the backend has no quantisers; a quantised `storage` is then refused. */
  constructor(
    checkpoint: Checkpoint,
    kernels: Kernels,
    storage: WorkerOptions['weights'],
    quantize: Quantize | undefined,
  ) {
    this.checkpoint = checkpoint;
    this.kernels = kernels;
    this.storage = storage;
    this.quantize = quantize;
  }

  /** Rows and columns of a matrix that will only be multiplied with. [rows, cols] */
  async matrix(role: ModelRole | LayerRole, layer: number | undefined, rows?: Range, cols?: Range): Promise<Tensor> {
    return this.upload(this.stored(await this.readSlice(role, layer, rows, cols)), 'matmul');
  }

  /** Rows of a matrix that will be looked up, or looked up and multiplied with. [rows, cols] */
  async table(role: ModelRole, rows: Range): Promise<Tensor> {
    return this.upload(this.stored(await this.readSlice(role, undefined, rows)), 'any');
  }

  /** The table as a matrix to multiply with: a copy only where the backend has a faster layout for one. [rows, cols] */
  async matrixOfTable(role: ModelRole, table: Tensor, rows: Range): Promise<Tensor> {
    return this.kernels.repacks(table.type, table.shape) ? await this.matrix(role, undefined, rows) : table;
  }

  /**
   * The same rows and columns of several experts, whose matrices lie one below the other.
   * @param experts which  @param rows of each  @returns [size(experts), size(rows), size(cols)]
   */
  async stack(
    role: 'expertGate' | 'expertUp' | 'expertDown',
    layer: number,
    experts: Range,
    rows: Range,
    cols?: Range,
  ): Promise<Tensor> {
    const shape = this.checkpoint.shapeOf(role, layer);
    const count = this.checkpoint.config.experts?.count;
    invariant(shape !== undefined && count !== undefined, `${role} of layer ${layer}: the model has no experts`);
    const rowsPerExpert = shape.rows / count;
    let tensor: Tensor | undefined;
    let offsetBytes = 0;
    for (let expert = experts.start; expert < experts.end; expert++) {
      const first = expert * rowsPerExpert;
      const range = { start: first + rows.start, end: first + rows.end };
      const weight = this.stored(await this.readSlice(role, layer, range, cols));
      tensor ??= this.kernels.allocate(weight.type, [size(experts), weight.rows, weight.cols]);
      this.kernels.upload(tensor, weight.bytes, offsetBytes);
      offsetBytes += weight.bytes.byteLength;
    }
    invariant(tensor !== undefined, `${role} of layer ${layer}: no experts to load`);
    this.uploadedBytes += offsetBytes;
    return tensor;
  }

  /** A vector, or a part of it, as f32. [length] */
  async vector(role: ModelRole | LayerRole, layer: number | undefined, part?: Range): Promise<Tensor> {
    return this.values(await this.floats(role, layer, undefined, part));
  }

  async optionalVector(role: LayerRole, layer: number, part?: Range): Promise<Tensor | undefined> {
    if (this.checkpoint.shapeOf(role, layer) === undefined) return undefined;
    return await this.vector(role, layer, part);
  }

  /** A slice as float32, for arithmetic before the upload. [rows, cols] row-major */
  async floats(
    role: ModelRole | LayerRole,
    layer: number | undefined,
    rows?: Range,
    cols?: Range,
  ): Promise<Float32Array> {
    return toFloat32(await this.readSlice(role, layer, rows, cols));
  }

  values(values: Float32Array): Tensor {
    return this.floatTensor(values, [values.length], 'f32');
  }

  /** Uploads computed values as f32 or f16. `shape` counts values.length elements. */
  floatTensor(values: Float32Array, shape: readonly number[], type: 'f32' | 'f16'): Tensor {
    const tensor = this.kernels.allocate(type, shape);
    const bytes = type === 'f32' ? bytesOf(values) : fromFloat32(values, 'f16');
    this.kernels.upload(tensor, bytes);
    this.uploadedBytes += bytes.byteLength;
    return tensor;
  }

  /** The float type for a matrix that must be recomputed while loading: f32 where the user or the file asks for it. */
  floatTypeFor(role: LayerRole, layer: number): 'f32' | 'f16' {
    const shape = this.checkpoint.shapeOf(role, layer);
    return this.storage === 'f32' ||
      (this.storage === 'keep' && shape?.type === 'f32' && !shape.fp8) ||
      !this.kernels.supportsWeights('f16')
      ? 'f32'
      : 'f16';
  }

  /** Columns cut inside a block are read whole and cut as floats. */
  private async readSlice(
    role: ModelRole | LayerRole,
    layer: number | undefined,
    rows?: Range,
    cols?: Range,
  ): Promise<Weight> {
    const shape = this.checkpoint.shapeOf(role, layer);
    if (shape === undefined)
      throw new ConfigError(
        `${this.checkpoint.path}: no ${role}${layer === undefined ? '' : ` in layer ${layer}`}; is the checkpoint complete?`,
      );
    const block = weightLayout(shape.type).blockSize;
    if (cols === undefined || (cols.start % block === 0 && (cols.end % block === 0 || cols.end === shape.cols)))
      return await this.checkpoint.read(role, layer, rows, cols);
    const whole = await this.checkpoint.read(role, layer, rows);
    return {
      rows: whole.rows,
      cols: size(cols),
      type: 'f16',
      bytes: fromFloat32(columnsOf(toFloat32(whole), whole.rows, whole.cols, [cols]), 'f16'),
    };
  }

  private stored(weight: Weight): Weight {
    const target = this.targetType(weight);
    if (target === weight.type) return weight;
    const values = toFloat32(weight);
    if (weight.fp8 && target === 'f16' && values.some((value) => Math.abs(value) > largestHalf))
      throw new ConfigError(
        `${this.checkpoint.path}: 8-bit floats times their scales exceed ${largestHalf}, the largest f16; use --weights f32`,
      );
    if (target === 'f32' || target === 'f16' || target === 'bf16')
      return { ...weight, type: target, bytes: fromFloat32(values, target) };
    invariant(this.quantize !== undefined, `no quantiser for ${target}`);
    return { ...weight, type: target, bytes: this.quantize(target, values, weight.rows, weight.cols) };
  }

  private targetType(weight: Weight): WeightType {
    if (this.storage === 'keep') {
      if (weight.fp8 && this.kernels.supportsWeights('f16')) return 'f16';
      return this.kernels.supportsWeights(weight.type) ? weight.type : 'f32';
    }
    if (
      !this.kernels.supportsWeights(this.storage) ||
      (weightLayout(this.storage).blockSize > 1 && this.quantize === undefined)
    ) {
      if (this.storage === 'f16') return 'f32';
      throw new ConfigError(`weights: ${this.kernels.name} cannot store ${this.storage}; use --weights keep or f32`);
    }
    // Rows that do not fill whole blocks stay in half precision.
    return weight.cols % weightLayout(this.storage).blockSize === 0 ? this.storage : 'f16';
  }

  private upload(weight: Weight, use: TensorUse): Tensor {
    const tensor = this.kernels.allocate(weight.type, [weight.rows, weight.cols], use);
    this.kernels.upload(tensor, weight.bytes);
    this.uploadedBytes += weight.bytes.byteLength;
    return tensor;
  }
}

const largestHalf = 65504;

function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
