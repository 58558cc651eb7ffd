/**
 * What steps.ts records with: scratch memory, kernel runs, and tensors handed to gpu.js as two-dimensional arrays, in
 * place where their layout permits. Next: kernel-cache.ts (compiled kernels).
 */
import type { Input } from 'gpu.js';
import { InvariantError } from '../../../config/errors.ts';
import { copyStep } from '../reference/ops.ts';
import type { Step } from '../reference/ops.ts';
import { elementCount, isContiguous, threeAxes } from '../reference/strided-tensor.ts';
import type { Storage, StridedTensor } from '../reference/strided-tensor.ts';
import { inputOf } from './kernel-cache.ts';
import type { KernelCache, KernelSpec } from './kernel-cache.ts';
import type { StackLayout } from './sources.ts';

/** A program under construction. */
export interface Recorder {
  readonly cache: KernelCache;
  /** Tensors that some program writes: never built into a kernel. */
  readonly written: WeakSet<Storage>;
  push(step: Step): void;
  /** New scratch memory, row-major. */
  result(shape: readonly number[]): StridedTensor;
}

/** [x, y], x the fastest axis. */
export type Dims = readonly [number, number];
export type LazyInput = () => Input;

/** A stack of matrices [groups, rows, columns] as one two-dimensional array, in place if its layout permits. */
export function stackOf(
  recorder: Recorder,
  stack: StridedTensor,
): { readonly storage: Storage; readonly layout: StackLayout; readonly input: LazyInput } {
  const [groups, rows, columns] = threeAxes(stack);
  const [groupStride, rowStride, columnStride] = [stack.strides[0]!, stack.strides[1]!, stack.strides[2]!];
  const column = rowStride === 0 ? 0 : stack.offset % rowStride;
  const inRows = groups === 1 || column + (groups - 1) * groupStride + columns <= rowStride;
  const inOrder = groups === 1 || (rowStride > 0 && groupStride % rowStride === 0);
  const rowStep = groups === 1 || inRows ? 0 : groupStride / rowStride;
  const count = (groups - 1) * rowStep + rows;
  const start = stack.offset - column;
  const fits = column + columns <= rowStride && start + count * rowStride <= stack.storage.length;
  if (columnStride === 1 && fits && (inRows || inOrder)) {
    const layout = { rowStep, column, columnStep: groups > 1 && inRows ? groupStride : 0 };
    return { storage: stack.storage, layout, input: lazyInput(stack.storage, start, [rowStride, count]) };
  }
  const copy = recorder.result(stack.shape);
  recorder.push(copyStep(stack, copy));
  const input = lazyInput(copy.storage, copy.offset, [columns, groups * rows]);
  return { storage: copy.storage, layout: { rowStep: rows, column: 0, columnStep: 0 }, input };
}

/** The numbers of a view in row-major order, copied first if they do not lie so. */
export function packed(recorder: Recorder, x: StridedTensor, dims: Dims): LazyInput {
  const { storage, offset } = compact(recorder, x);
  return lazyInput(storage, offset, dims);
}

export function compact(recorder: Recorder, x: StridedTensor): StridedTensor {
  if (isContiguous(x)) return x;
  const copy = recorder.result(x.shape);
  recorder.push(copyStep(x, copy));
  return copy;
}

export function runKernel(
  recorder: Recorder,
  spec: KernelSpec,
  inputs: readonly LazyInput[],
  out: StridedTensor,
): void {
  const length = elementCount(out.shape);
  recorder.push(() => {
    const target = floats(out.storage).subarray(out.offset, out.offset + length);
    recorder.cache.run(
      spec,
      inputs.map((input) => input()),
      null,
      target,
    );
  });
}

/** Made at the first run, when scratch memory is bound, and kept: nothing is allocated per token. */
export function lazyInput(storage: Storage, start: number, dims: Dims): LazyInput {
  let input: Input | undefined;
  return () => (input ??= inputOf(floats(storage).subarray(start, start + dims[0] * dims[1]), dims));
}

export function floats(storage: Storage): Float32Array {
  if (storage.data instanceof Float32Array) return storage.data;
  throw new InvariantError(`tensor of ${storage.length} ${storage.type} where numbers are computed`);
}
