/**
 * Dense float64 matrices for the conversion: row-major, one flat array, loops that walk memory in order. It does not
 * know about attention. Products are in products.ts, eigenproblems in eigen.ts; read next: attention-maps.ts, which gives the
 * matrices meaning.
 */
import { invariant } from '../../config/errors.ts';
import { addProduct, partOf } from './products.ts';

/** Row i is data[i * cols .. (i + 1) * cols]. */
export interface Dense {
  readonly rows: number;
  readonly cols: number;
  readonly data: Float64Array; // [rows, cols]
}

export function zeros(rows: number, cols: number): Dense {
  return { rows, cols, data: new Float64Array(rows * cols) };
}

export function identity(n: number): Dense {
  const out = zeros(n, n);
  for (let i = 0; i < n; i++) out.data[i * n + i] = 1;
  return out;
}

/** @param values [rows, cols], row-major */
export function denseFrom(rows: number, cols: number, values: ArrayLike<number>): Dense {
  invariant(values.length === rows * cols, `denseFrom: ${values.length} values for [${rows}, ${cols}]`);
  return { rows, cols, data: Float64Array.from(values) };
}

export function at(a: Dense, row: number, col: number): number {
  return a.data[row * a.cols + col]!;
}

export function frobeniusNorm(a: Dense): number {
  return Math.sqrt(a.data.reduce((sum, value) => sum + value * value, 0));
}

export function diagonal(a: Dense): Float64Array {
  return Float64Array.from({ length: Math.min(a.rows, a.cols) }, (_, i) => a.data[i * a.cols + i]!);
}

/** A B: [m, k] [k, n] -> [m, n]. */
export function multiply(a: Dense, b: Dense): Dense {
  invariant(a.cols === b.rows, `multiply: [${a.rows}, ${a.cols}] with [${b.rows}, ${b.cols}]`);
  return multiplyTransposed(a, transpose(b));
}

/** A B^T: [m, k] [n, k] -> [m, n]. */
export function multiplyTransposed(a: Dense, b: Dense): Dense {
  invariant(a.cols === b.cols, `multiplyTransposed: [${a.rows}, ${a.cols}] with [${b.rows}, ${b.cols}]`);
  const out = zeros(a.rows, b.rows);
  addProduct(partOf(out), partOf(a), partOf(b), 1);
  return out;
}

/** A S A^T for a symmetric S: the second moment of A x, given that of x. [m, k] [k, k] -> [m, m], exactly symmetric. */
export function congruence(a: Dense, s: Dense): Dense {
  const out = multiplyTransposed(multiply(a, s), a);
  symmetrise(out);
  return out;
}

export function transpose(a: Dense): Dense {
  const out = zeros(a.cols, a.rows);
  for (let i = 0; i < a.rows; i++) for (let j = 0; j < a.cols; j++) out.data[j * a.rows + i] = a.data[i * a.cols + j]!;
  return out;
}

export function scaled(a: Dense, factor: number): Dense {
  return { rows: a.rows, cols: a.cols, data: a.data.map((value) => value * factor) };
}

/** Rows start .. end as a view: writing to it writes to `a`. */
export function rowsOf(a: Dense, start: number, end: number): Dense {
  return { rows: end - start, cols: a.cols, data: a.data.subarray(start * a.cols, end * a.cols) };
}

/** Columns start .. end, copied. */
export function colsOf(a: Dense, start: number, end: number): Dense {
  const out = zeros(a.rows, end - start);
  for (let i = 0; i < a.rows; i++) {
    out.data.set(a.data.subarray(i * a.cols + start, i * a.cols + end), i * out.cols);
  }
  return out;
}

/** The matrices one below the other; all have the same number of columns. */
export function stackRows(parts: readonly Dense[]): Dense {
  const cols = parts[0]?.cols ?? 0;
  const out = zeros(
    parts.reduce((rows, part) => rows + part.rows, 0),
    cols,
  );
  let offset = 0;
  for (const part of parts) {
    invariant(part.cols === cols, `stackRows: ${part.cols} columns below ${cols}`);
    out.data.set(part.data, offset);
    offset += part.data.length;
  }
  return out;
}

/** The matrices side by side; all have the same number of rows. */
export function joinCols(parts: readonly Dense[]): Dense {
  const rows = parts[0]?.rows ?? 0;
  const out = zeros(
    rows,
    parts.reduce((cols, part) => cols + part.cols, 0),
  );
  let start = 0;
  for (const part of parts) {
    invariant(part.rows === rows, `joinCols: ${part.rows} rows beside ${rows}`);
    for (let i = 0; i < rows; i++) {
      out.data.set(part.data.subarray(i * part.cols, (i + 1) * part.cols), i * out.cols + start);
    }
    start += part.cols;
  }
  return out;
}

/** Makes rounding equal on both sides of the diagonal, which eigen solvers assume. */
function symmetrise(a: Dense): void {
  const n = a.rows;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) {
      const mean = (a.data[i * n + j]! + a.data[j * n + i]!) / 2;
      a.data[i * n + j] = mean;
      a.data[j * n + i] = mean;
    }
  }
}

/** a + weight * b */
export function added(a: Dense, b: Dense, weight: number): Dense {
  invariant(a.rows === b.rows && a.cols === b.cols, `added: [${a.rows}, ${a.cols}] and [${b.rows}, ${b.cols}]`);
  return { rows: a.rows, cols: a.cols, data: a.data.map((value, i) => value + weight * b.data[i]!) };
}

/** Column j times factors[j]. */
export function scaleCols(a: Dense, factors: ArrayLike<number>): Dense {
  return { rows: a.rows, cols: a.cols, data: a.data.map((value, i) => value * factors[i % a.cols]!) };
}

/** The matrices along the diagonal, zeros elsewhere. */
export function blockDiagonal(blocks: readonly Dense[]): Dense {
  const sum = (of: (block: Dense) => number): number => blocks.reduce((total, block) => total + of(block), 0);
  const out = zeros(
    sum((block) => block.rows),
    sum((block) => block.cols),
  );
  let [row, col] = [0, 0];
  for (const block of blocks) {
    for (let i = 0; i < block.rows; i++) {
      out.data.set(block.data.subarray(i * block.cols, (i + 1) * block.cols), (row + i) * out.cols + col);
    }
    row += block.rows;
    col += block.cols;
  }
  return out;
}
