/**
 * Products of float64 matrices, where a conversion spends the time of its own process: C += sign A B^T on parts of
 * matrices, both sides walked along their rows. Words: tile (4 x 4 sums, which stay in registers: every number that is
 * read serves four multiplications), band (rows of B that stay in a cache while all of A meets them).
 */

/** Rows and columns of a row-major matrix. */
export interface MatrixPart {
  readonly data: Float64Array;
  /** Of the first number. */
  readonly start: number;
  /** From one row to the next. */
  readonly stride: number;
  readonly rows: number;
  readonly cols: number;
}

const tile = 4;
const bandRows = 64;

export function partOf(
  { data, cols: stride, rows: all }: { readonly data: Float64Array; readonly rows: number; readonly cols: number },
  row = 0,
  col = 0,
  rows = all - row,
  cols = stride - col,
): MatrixPart {
  return { data, start: row * stride + col, stride, rows, cols };
}

/** C += sign A B^T. @param out [m, n]  @param a [m, k]  @param b [n, k], must not overlap with `out` */
export function addProduct(out: MatrixPart, a: MatrixPart, b: MatrixPart, sign: 1 | -1): void {
  const { rows: m } = a;
  const { rows: n } = b;
  const [wholeM, wholeN] = [m - (m % tile), n - (n % tile)];
  for (let band = 0; band < wholeN; band += bandRows) {
    const end = Math.min(band + bandRows, wholeN);
    for (let i = 0; i < wholeM; i += tile) for (let j = band; j < end; j += tile) addTile(out, a, b, i, j, sign);
  }
  for (let i = 0; i < m; i++) {
    for (let j = i < wholeM ? wholeN : 0; j < n; j++) {
      const sum = dot(a.data, a.start + i * a.stride, b.data, b.start + j * b.stride, a.cols);
      out.data[out.start + i * out.stride + j]! += sign * sum;
    }
  }
}

/** Sum of `count` products x[from ..] y[start ..]: four sums side by side, as one would wait for each addition. */
export function dot(x: Float64Array, from: number, y: Float64Array, start: number, count: number): number {
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  const whole = count - (count % 4);
  for (let i = 0; i < whole; i += 4) {
    a += x[from + i]! * y[start + i]!;
    b += x[from + i + 1]! * y[start + i + 1]!;
    c += x[from + i + 2]! * y[start + i + 2]!;
    d += x[from + i + 3]! * y[start + i + 3]!;
  }
  for (let i = whole; i < count; i++) a += x[from + i]! * y[start + i]!;
  return a + b + (c + d);
}

/** Rows i .. i + 4 of A, rows j .. j + 4 of B. Arrays that are taken apart inside the loop make it three times as slow. */
function addTile(out: MatrixPart, a: MatrixPart, b: MatrixPart, i: number, j: number, sign: 1 | -1): void {
  const { data: x, stride: xStride, cols: k } = a;
  const { data: y, stride: yStride } = b;
  const p0 = a.start + i * xStride;
  const p1 = p0 + xStride;
  const p2 = p1 + xStride;
  const p3 = p2 + xStride;
  const q0 = b.start + j * yStride;
  const q1 = q0 + yStride;
  const q2 = q1 + yStride;
  const q3 = q2 + yStride;
  let s00 = 0;
  let s01 = 0;
  let s02 = 0;
  let s03 = 0;
  let s10 = 0;
  let s11 = 0;
  let s12 = 0;
  let s13 = 0;
  let s20 = 0;
  let s21 = 0;
  let s22 = 0;
  let s23 = 0;
  let s30 = 0;
  let s31 = 0;
  let s32 = 0;
  let s33 = 0;
  for (let l = 0; l < k; l++) {
    const x0 = x[p0 + l]!;
    const x1 = x[p1 + l]!;
    const x2 = x[p2 + l]!;
    const x3 = x[p3 + l]!;
    const y0 = y[q0 + l]!;
    const y1 = y[q1 + l]!;
    const y2 = y[q2 + l]!;
    const y3 = y[q3 + l]!;
    s00 += x0 * y0;
    s01 += x0 * y1;
    s02 += x0 * y2;
    s03 += x0 * y3;
    s10 += x1 * y0;
    s11 += x1 * y1;
    s12 += x1 * y2;
    s13 += x1 * y3;
    s20 += x2 * y0;
    s21 += x2 * y1;
    s22 += x2 * y2;
    s23 += x2 * y3;
    s30 += x3 * y0;
    s31 += x3 * y1;
    s32 += x3 * y2;
    s33 += x3 * y3;
  }
  const place = out.start + i * out.stride + j;
  addRow(out, place, sign, s00, s01, s02, s03);
  addRow(out, place + out.stride, sign, s10, s11, s12, s13);
  addRow(out, place + 2 * out.stride, sign, s20, s21, s22, s23);
  addRow(out, place + 3 * out.stride, sign, s30, s31, s32, s33);
}

function addRow({ data: z }: MatrixPart, at: number, sign: number, a: number, b: number, c: number, d: number): void {
  z[at]! += sign * a;
  z[at + 1]! += sign * b;
  z[at + 2]! += sign * c;
  z[at + 3]! += sign * d;
}
