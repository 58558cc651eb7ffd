/**
 * The values of a key and value cache: in which order they lie, how new ones are written, and how attention sees them.
 * Keys lie by row, one row per position. Read next: attention.ts.
 */
import { invariant } from '../config/errors.ts';
import { size, type Range } from '../config/shard-plan.ts';
import type { Kernels, Ops, Tensor, TensorType } from './kernels/kernels.ts';

/** The rows of one sequence that attention reads. */
interface RowsOfSlot {
  readonly cacheStart: number;
  readonly cacheRows: number;
}

interface RowsOfSlots extends RowsOfSlot {
  readonly sequences: number;
}

/** Where new values go. */
interface ValuePlaces {
  readonly cacheRows: Tensor; // [tokens] i32
  readonly valueCells: Tensor | undefined; // [tokens * localKvHeads * headDim] i32
}

/**
 * Values by column are what a weighted sum over positions reads side by side: with few queries that is three times as
 * fast. They are written number by number, which quantised types cannot be.
 */
export type ValueCache =
  | { readonly order: 'columns'; readonly numbers: Tensor } // [slots * localKvHeads * headDim * rowsPerSlot, 1]
  | { readonly order: 'rows'; readonly rows: Tensor }; // as keys

/** Positions of numbers are i32. */
export function allocateValues(kernels: Kernels, type: TensorType, rows: number, width: number): ValueCache {
  return type === 'q8_0' || rows * width >= 2 ** 31
    ? { order: 'rows', rows: kernels.allocate(type, [rows, width], 'rows') }
    : { order: 'columns', numbers: kernels.allocate(type, [rows * width, 1], 'rows') };
}

/** Where the values of tokens are written when they lie by column. @param cacheRows [tokens]  @returns [tokens * width] */
export function cellsOfValues(cacheRows: readonly number[], rowsPerSlot: number, width: number): Int32Array {
  const cells = new Int32Array(cacheRows.length * width);
  cacheRows.forEach((row, t) => {
    const slot = Math.floor(row / rowsPerSlot);
    const first = slot * width * rowsPerSlot + (row % rowsPerSlot);
    for (let column = 0; column < width; column++) cells[t * width + column] = first + column * rowsPerSlot;
  });
  return cells;
}

/** @param v [tokens, localKvHeads * headDim] */
export function writeValues(ops: Ops, values: ValueCache, v: Tensor, inputs: ValuePlaces): void {
  if (values.order === 'rows') return ops.scatterRows(values.rows, v, inputs.cacheRows);
  invariant(inputs.valueCells !== undefined, 'values are cached by column, but their places are not among the inputs');
  ops.scatterRows(values.numbers, ops.reshape(v, [dim(inputs.valueCells, 0), 1]), inputs.valueCells);
}

/** Values of a segment's positions as heads. [localKvHeads, cacheRows, headDim] */
export function headsOfValues(
  ops: Ops,
  values: ValueCache,
  rowsPerSlot: number,
  segment: RowsOfSlot,
  width: number,
  headDim: number,
): Tensor {
  if (values.order === 'rows') return headsOfRows(ops, values.rows, segment, headDim);
  const heads = width / headDim;
  const slots = dim(values.numbers, 0) / (width * rowsPerSlot);
  const columns = ops.reshape(values.numbers, [slots * heads, headDim, rowsPerSlot]);
  const ofSlot = ops.slice(columns, 0, (segment.cacheStart / rowsPerSlot) * heads, heads);
  return ops.permute(ops.slice(ofSlot, 2, 0, segment.cacheRows), [0, 2, 1]);
}

/** Rows of a key or value cache as heads. [localKvHeads, cacheRows, headDim] */
export function headsOfRows(ops: Ops, cache: Tensor, segment: RowsOfSlot, headDim: number): Tensor {
  const heads = ops.reshape(cache, [dim(cache, 0), dim(cache, 1) / headDim, headDim]);
  return ops.permute(ops.slice(heads, 0, segment.cacheStart, segment.cacheRows), [1, 0, 2]);
}

/** Some columns of the rows that several sequences read, in slots side by side. [sequences, cacheRows, columns] */
export function rowsOfSlots(
  ops: Ops,
  cache: Tensor, // [slots * rowsPerSlot, width], perhaps with a spare row behind
  rowsPerSlot: number,
  segment: RowsOfSlots,
  columns: Range,
): Tensor {
  const rows = ops.slice(cache, 0, segment.cacheStart, segment.sequences * rowsPerSlot);
  const own = ops.reshape(rows, [segment.sequences, rowsPerSlot, dim(cache, 1)]);
  return ops.slice(ops.slice(own, 1, 0, segment.cacheRows), 2, columns.start, size(columns));
}

/** The same of values. [sequences, cacheRows, columns] */
export function columnsOfSlots(
  ops: Ops,
  values: ValueCache,
  rowsPerSlot: number,
  segment: RowsOfSlots,
  width: number,
  columns: Range,
): Tensor {
  if (values.order === 'rows') return rowsOfSlots(ops, values.rows, rowsPerSlot, segment, columns);
  const slots = dim(values.numbers, 0) / (width * rowsPerSlot);
  const all = ops.reshape(values.numbers, [slots, width, rowsPerSlot]);
  const own = ops.slice(all, 0, segment.cacheStart / rowsPerSlot, segment.sequences);
  const read = ops.slice(ops.slice(own, 1, columns.start, size(columns)), 2, 0, segment.cacheRows);
  return ops.permute(read, [0, 2, 1]);
}

function dim(x: Tensor, axis: number): number {
  const length = x.shape[axis];
  invariant(length !== undefined, `axis ${axis} of a tensor of shape [${x.shape.join(', ')}]`);
  return length;
}
