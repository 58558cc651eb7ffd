/**
 * What this backend knows of a tensor: storage type, shape and byte strides, outermost first, and ggml's handle, which
 * counts axes the other way round. Strides are kept here so that slices and checks need not read ggml's structures.
 */
import type { Tensor, TensorType } from '../kernels.ts';
import type { Pointer } from './functions.ts';

interface Storage {
  /** Number in ggml's enum ggml_type. */
  readonly id: number;
  /** Elements that are stored together, and their bytes. */
  readonly block: number;
  readonly blockBytes: number;
}

export const STORAGE: Readonly<Record<TensorType, Storage>> = {
  f32: { id: 0, block: 1, blockBytes: 4 },
  f16: { id: 1, block: 1, blockBytes: 2 },
  bf16: { id: 30, block: 1, blockBytes: 2 },
  i32: { id: 26, block: 1, blockBytes: 4 },
  q4_0: { id: 2, block: 32, blockBytes: 18 },
  q4_1: { id: 3, block: 32, blockBytes: 20 },
  q5_0: { id: 6, block: 32, blockBytes: 22 },
  q5_1: { id: 7, block: 32, blockBytes: 24 },
  q8_0: { id: 8, block: 32, blockBytes: 34 },
  q2_K: { id: 10, block: 256, blockBytes: 84 },
  q3_K: { id: 11, block: 256, blockBytes: 110 },
  q4_K: { id: 12, block: 256, blockBytes: 144 },
  q5_K: { id: 13, block: 256, blockBytes: 176 },
  q6_K: { id: 14, block: 256, blockBytes: 210 },
  iq4_nl: { id: 20, block: 32, blockBytes: 18 },
};

export const MAX_AXES = 4;

/** Handle of a tensor without elements: ggml never sees one. */
export const NO_POINTER: Pointer = 0n;

/** A call that breaks the contract of kernels.ts. ggml itself would end the process. */
export class KernelError extends Error {
  override readonly name = 'KernelError';
}

/** @param message a function where it takes work to make: a token takes hundreds of checks, a batch's programs thousands */
export function check(condition: boolean, message: string | (() => string)): asserts condition {
  if (!condition) throw new KernelError(`ggml: ${typeof message === 'string' ? message : message()}`);
}

export interface Memory {
  readonly context: Pointer;
  /** undefined: a part of a buffer that several tensors share. */
  readonly buffer: Pointer | undefined;
}

/**
 * How a tensor lies in memory. 'rows': as its shape and strides say. The others are understood by products only: 'tiles'
 * are ggml's for AMX.
 */
export type Layout = 'rows' | 'tiles' | 'repacked';

/** Where a tensor's memory comes from: `allocate`, or the program that computes it. */
export type Origin =
  | {
      readonly kind: 'allocated';
      readonly memory: Memory | undefined;
      readonly layout: Layout;
      /** Rows of zeros behind those of the matrix, which its layout needs. */
      readonly paddingRows: number;
      released: boolean;
    }
  | { readonly kind: 'program'; readonly program: object };

export class GgmlTensor implements Tensor {
  readonly type: TensorType;
  readonly shape: readonly number[];
  /** Of all its elements, without gaps. */
  readonly bytes: number;
  /** Bytes from one index to the next, outermost first; of the last axis: bytes of a block. */
  readonly strides: readonly number[];
  readonly pointer: Pointer;
  readonly origin: Origin;
  /** The tensor that owns the memory a view shows; the tensor itself if it is no view. */
  readonly root: GgmlTensor;
  /** Bytes from the start of root's memory to the tensor's first element. */
  readonly offset: number;
  /** Set on a result of `permute`. ggml cannot slice one, so slices are taken from its source. */
  readonly permuted: { readonly source: GgmlTensor; readonly order: readonly number[] } | undefined;

  constructor(fields: {
    type: TensorType;
    shape: readonly number[];
    pointer: Pointer;
    origin: Origin;
    strides?: readonly number[];
    root?: GgmlTensor;
    offset?: number;
    permuted?: { source: GgmlTensor; order: readonly number[] };
  }) {
    this.type = fields.type;
    this.shape = fields.shape;
    this.bytes = byteLength(fields.type, fields.shape);
    this.strides = fields.strides ?? rowMajorStrides(fields.type, fields.shape);
    this.pointer = fields.pointer;
    this.origin = fields.origin;
    this.root = fields.root ?? this;
    this.offset = fields.offset ?? 0;
    this.permuted = fields.permuted;
  }
}

export function layoutOf({ origin }: GgmlTensor): Layout {
  return origin.kind === 'allocated' ? origin.layout : 'rows';
}

export function paddingRowsOf({ origin }: GgmlTensor): number {
  return origin.kind === 'allocated' ? origin.paddingRows : 0;
}

export function isRepacked(tensor: GgmlTensor): boolean {
  return layoutOf(tensor) !== 'rows';
}

export function describe(tensor: Tensor): string {
  return `${tensor.type} [${tensor.shape.join(', ')}]`;
}

/** Shape as ggml counts it: innermost first, filled up with ones. */
export function ggmlShape(shape: readonly number[]): [number, number, number, number] {
  const n = shape.length;
  return [shape[n - 1] ?? 1, shape[n - 2] ?? 1, shape[n - 3] ?? 1, shape[n - 4] ?? 1];
}

export function elements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

export function byteLength(type: TensorType, shape: readonly number[]): number {
  const { block, blockBytes } = STORAGE[type];
  return (elements(shape) / block) * blockBytes;
}

export function checkShape(type: TensorType, shape: readonly number[]): void {
  const text = (): string => `${type} [${shape.join(', ')}]`;
  check(
    shape.length >= 1 && shape.length <= MAX_AXES,
    () => `${text()}: expected 1 to ${MAX_AXES} axes, got ${shape.length}`,
  );
  check(
    shape.every((size) => Number.isSafeInteger(size) && size >= 0),
    () => `${text()}: every axis must be a whole number`,
  );
  const { block } = STORAGE[type];
  check(
    shape.at(-1)! % block === 0,
    () => `${text()}: the last axis must be a multiple of ${block}, the block of ${type}`,
  );
}

export function rowMajorStrides(type: TensorType, shape: readonly number[]): number[] {
  const { block, blockBytes } = STORAGE[type];
  const strides = new Array<number>(shape.length).fill(blockBytes);
  if (shape.length < 2) return strides;
  strides[shape.length - 2] = (shape.at(-1)! / block) * blockBytes;
  for (let axis = shape.length - 3; axis >= 0; axis--) strides[axis] = strides[axis + 1]! * shape[axis + 1]!;
  return strides;
}

/** Elements of the last axis lie side by side. */
export function hasContiguousRows(tensor: GgmlTensor): boolean {
  return tensor.strides.at(-1) === STORAGE[tensor.type].blockBytes;
}

/** Row-major without gaps. */
export function isContiguous(tensor: GgmlTensor): boolean {
  const expected = rowMajorStrides(tensor.type, tensor.shape);
  return tensor.shape.every((size, axis) => size === 1 || tensor.strides[axis] === expected[axis]);
}
