/**
 * Dense float64 matrices for the conversion: row-major, one flat array, loops that walk memory in order. It does not
 * know about attention. Eigenproblems are in eigen.ts; read next: attention-maps.ts, which gives the matrices meaning.
 */
import { invariant } from '../../config/errors.ts';

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

export function diagonal(a: Dense): Float64Array {
  return Float64Array.from({ length: Math.min(a.rows, a.cols) }, (_, i) => a.data[i * a.cols + i]!);
}

/** A B: [m, k] [k, n] -> [m, n]. Four rows of B are added per pass, so that C is read and written k / 4 times. */
export function multiply(a: Dense, b: Dense): Dense {
  invariant(a.cols === b.rows, `multiply: [${a.rows}, ${a.cols}] with [${b.rows}, ${b.cols}]`);
  const [m, k, n] = [a.rows, a.cols, b.cols];
  const out = zeros(m, n);
  const [x, y, z] = [a.data, b.data, out.data];
  const whole = k - (k % 4);
  for (let i = 0; i < m; i++) {
    const row = i * n;
    for (let l = 0; l < whole; l += 4) {
      const x0 = x[i * k + l]!;
      const x1 = x[i * k + l + 1]!;
      const x2 = x[i * k + l + 2]!;
      const x3 = x[i * k + l + 3]!;
      if (x0 === 0 && x1 === 0 && x2 === 0 && x3 === 0) continue; // selectors and rotations are mostly zeros
      const y0 = l * n;
      const y1 = y0 + n;
      const y2 = y1 + n;
      const y3 = y2 + n;
      for (let j = 0; j < n; j++) z[row + j]! += x0 * y[y0 + j]! + x1 * y[y1 + j]! + x2 * y[y2 + j]! + x3 * y[y3 + j]!;
    }
    for (let l = whole; l < k; l++) {
      const x0 = x[i * k + l]!;
      for (let j = 0; j < n; j++) z[row + j]! += x0 * y[l * n + j]!;
    }
  }
  return out;
}

/** A B^T: [m, k] [n, k] -> [m, n]. */
export function multiplyTransposed(a: Dense, b: Dense): Dense {
  return multiply(a, transpose(b));
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
