/**
 * Tensors as strided views over typed arrays, shared by the reference and gpujs backends. A Storage owns the numbers
 * (f16 and bf16 are kept decoded as float32); a StridedTensor says which of them, in which order.
 * Views cost nothing at run time. Next: shapes.ts (what operations accept), ../reference.ts.
 */
import { InvariantError, invariant } from '../../../config/errors.ts';
import type { Tensor, TensorType } from '../kernels.ts';
import { decodeBrainFloat, decodeHalf } from './half.ts';

/** Operations see every tensor as four nested loops; the contract needs three. */
export const MAX_AXES = 4;

export class Storage {
  readonly type: TensorType;
  readonly length: number;
  /** false: an operation's result, lost when another program runs. */
  readonly allocated: boolean;
  /** Counts writes from outside kernels, so that a backend knows when its device copy is stale. */
  version = 0;
  /** Bound late for results: all programs of a set share one array. */
  data: Float32Array | Int32Array = new Float32Array(0);

  constructor(type: TensorType, length: number, allocated: boolean) {
    this.type = type;
    this.length = length;
    this.allocated = allocated;
  }
}

/** A class only so that a foreign backend's tensor can be told apart. */
export class StridedTensor implements Tensor {
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly offset: number;
  readonly storage: Storage;

  constructor(storage: Storage, shape: readonly number[], strides = rowMajorStrides(shape), offset = 0) {
    invariant(
      shape.length <= MAX_AXES,
      `tensor [${shape.join(', ')}] has ${shape.length} axes, expected at most ${MAX_AXES}`,
    );
    this.storage = storage;
    this.shape = shape;
    this.strides = strides;
    this.offset = offset;
  }

  get type(): TensorType {
    return this.storage.type;
  }
}

export function asStrided(tensor: Tensor): StridedTensor {
  if (tensor instanceof StridedTensor) return tensor;
  throw new InvariantError(`tensor ${tensor.type} [${tensor.shape.join(', ')}] was made by another backend`);
}

export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

export function rowMajorStrides(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length).fill(1);
  for (let axis = shape.length - 2; axis >= 0; axis--) strides[axis] = strides[axis + 1]! * shape[axis + 1]!;
  return strides;
}

/** Row-major with no gaps; the stride of an axis of length 1 does not matter. */
export function isContiguous(x: StridedTensor): boolean {
  if (elementCount(x.shape) === 0) return true;
  const expected = rowMajorStrides(x.shape);
  return x.shape.every((size, axis) => size === 1 || x.strides[axis] === expected[axis]);
}

export function sliceView(x: StridedTensor, axis: number, start: number, length: number): StridedTensor {
  const size = x.shape[axis];
  invariant(
    size !== undefined && start >= 0 && length >= 0 && start + length <= size,
    `slice: ${start} .. ${start + length} of axis ${axis} of [${x.shape.join(', ')}]`,
  );
  const shape = x.shape.with(axis, length);
  return new StridedTensor(x.storage, shape, [...x.strides], x.offset + start * x.strides[axis]!);
}

export function permuteView(x: StridedTensor, order: readonly number[]): StridedTensor {
  const sorted = order.toSorted((a, b) => a - b);
  invariant(
    order.length === x.shape.length && sorted.every((axis, i) => axis === i),
    `permute: order [${order.join(', ')}] of [${x.shape.join(', ')}]`,
  );
  const shape = order.map((axis) => x.shape[axis]!);
  const strides = order.map((axis) => x.strides[axis]!);
  return new StridedTensor(x.storage, shape, strides, x.offset);
}

export function reshapeView(x: StridedTensor, shape: readonly number[]): StridedTensor {
  invariant(
    isContiguous(x),
    `reshape: [${x.shape.join(', ')}] with strides [${x.strides.join(', ')}] is a view; call contiguous first`,
  );
  invariant(
    elementCount(x.shape) === elementCount(shape),
    `reshape: [${x.shape.join(', ')}] to [${shape.join(', ')}] changes the size`,
  );
  return new StridedTensor(x.storage, shape, undefined, x.offset);
}

/** Repeats over leading axes by stride 0. */
export function broadcastView(x: StridedTensor, shape: readonly number[]): StridedTensor {
  const leading = new Array<number>(shape.length - x.shape.length).fill(0);
  return new StridedTensor(x.storage, shape, [...leading, ...x.strides], x.offset);
}

/** The same view with leading axes of length 1 up to `count` axes. */
export function withAxes(x: StridedTensor, count: number): StridedTensor {
  const missing = count - x.shape.length;
  const ones = new Array<number>(missing).fill(1);
  const zeros = new Array<number>(missing).fill(0);
  return new StridedTensor(x.storage, [...ones, ...x.shape], [...zeros, ...x.strides], x.offset);
}

/** Sizes of a tensor that has three axes. */
export function threeAxes(x: Tensor): readonly [number, number, number] {
  const [first, second, third] = x.shape;
  invariant(x.shape.length === 3, `tensor [${x.shape.join(', ')}], expected three axes`);
  return [first!, second!, third!];
}

export function allocateStorage(type: TensorType, length: number): Storage {
  const storage = new Storage(type, length, true);
  storage.data = type === 'i32' ? new Int32Array(length) : new Float32Array(length);
  return storage;
}

/** Decodes bytes of the storage's type into it. */
export function writeBytes(storage: Storage, bytes: Uint8Array, offsetBytes: number): void {
  const width = storage.type === 'f16' || storage.type === 'bf16' ? 2 : 4;
  const start = offsetBytes / width;
  const count = bytes.byteLength / width;
  invariant(
    Number.isInteger(start) && Number.isInteger(count) && start + count <= storage.length,
    `upload: bytes ${offsetBytes} .. ${offsetBytes + bytes.byteLength} into ${storage.type} of ${storage.length} elements`,
  );
  const aligned = bytes.byteOffset % width === 0 ? bytes : new Uint8Array(bytes);
  const target = storage.data;
  storage.version++;
  if (width === 4) {
    const { buffer, byteOffset } = aligned;
    const integers = storage.type === 'i32';
    const numbers = integers ? new Int32Array(buffer, byteOffset, count) : new Float32Array(buffer, byteOffset, count);
    target.set(numbers, start);
    return;
  }
  const decode = storage.type === 'f16' ? decodeHalf : decodeBrainFloat;
  const bits = new Uint16Array(aligned.buffer, aligned.byteOffset, count);
  for (let i = 0; i < count; i++) target[start + i] = decode(bits[i]!);
}

/** Reads the first `out.length` elements of a view, in row-major order. */
export function readView(x: StridedTensor, out: Float32Array): void {
  invariant(x.type === 'f32', `download: tensor [${x.shape.join(', ')}] is ${x.type}, expected f32`);
  invariant(out.length <= elementCount(x.shape), `download: ${out.length} elements from [${x.shape.join(', ')}]`);
  const data = x.storage.data;
  if (isContiguous(x)) {
    out.set(data.subarray(x.offset, x.offset + out.length));
    return;
  }
  const index = new Array<number>(x.shape.length).fill(0);
  for (let i = 0; i < out.length; i++) {
    let offset = x.offset;
    for (let axis = 0; axis < index.length; axis++) offset += index[axis]! * x.strides[axis]!;
    out[i] = data[offset]!;
    for (let axis = index.length - 1; axis >= 0 && ++index[axis]! === x.shape[axis]; axis--) index[axis] = 0;
  }
}
