/**
 * Reads ranges of rows and columns of a located weight in its announced type and order: rows of several tensors one
 * below the other, rows that GGUF keeps in neighbour-pair order, 8-bit floats with block scales, gains stored minus 1,
 * and W_UK, W_UV stored apart. Nothing is cached.
 */
import { size, type Range } from '../config/shard-plan.ts';
import { invariant } from '../config/errors.ts';
import type { LocatedWeight, Fp8Matrix } from './locate-weights.ts';
import { fromFloat32, toFloat32 } from './dequantize.ts';
import { floatOfFp8 } from './fp8.ts';
import type { StoredTensor } from './tensor-store.ts';
import { isWeightType, rowBytes } from './tensor-types.ts';
import type { WeightType } from './checkpoint.ts';

/** A column slice is cut out of whole rows, read in pieces of about this size. */
const pieceBytes = 1 << 22;

/** @returns rows * cols values, row-major, in the weight's type */
export async function readWeight(weight: LocatedWeight, rows: Range, cols: Range): Promise<Uint8Array> {
  const { source, type } = weight;
  switch (source.kind) {
    case 'plain':
      return readStacked(source.tensors, weight.rows, rows, size(rows) * rowBytes(type, size(cols)), (tensor, part) =>
        readRange(tensor, type, weight.cols, part, cols),
      );
    case 'neighbourPairs':
      return readNeighbourPairs(source.tensor, type, weight, source.headDim, rows, cols);
    case 'minusOne': {
      const gains = await readFloats(source.tensor, weight.cols, rows, cols);
      return fromFloat32(
        gains.map((gain) => gain + 1),
        'f32',
      );
    }
    case 'fp8':
      return readStacked(source.pairs, weight.rows, rows, size(rows) * size(cols) * 4, (pair, part) =>
        readFp8(pair, weight.cols, part, cols),
      );
    case 'latentParts':
      return readLatentParts(source.key, source.value, weight, rows, cols);
  }
}

/** Rows of equal parts that lie one below the other. */
async function readStacked<Part>(
  parts: readonly Part[],
  totalRows: number,
  rows: Range,
  bytes: number,
  read: (part: Part, rows: Range) => Promise<Uint8Array>,
): Promise<Uint8Array> {
  const [only] = parts;
  if (parts.length === 1 && only !== undefined) return read(only, rows);
  const rowsPerPart = totalRows / parts.length;
  const out = new Uint8Array(bytes);
  let to = 0;
  for (const [i, part] of parts.entries()) {
    const start = Math.max(rows.start, i * rowsPerPart);
    const end = Math.min(rows.end, (i + 1) * rowsPerPart);
    if (start >= end) continue;
    const piece = await read(part, { start: start - i * rowsPerPart, end: end - i * rowsPerPart });
    out.set(piece, to);
    to += piece.byteLength;
  }
  invariant(to === bytes, `weights: stacked rows gave ${to} bytes, expected ${bytes}`);
  return out;
}

async function readRange(
  tensor: StoredTensor,
  type: WeightType,
  totalCols: number,
  rows: Range,
  cols: Range,
): Promise<Uint8Array> {
  const strideBytes = rowBytes(type, totalCols);
  const read = (from: number, count: number): Promise<Uint8Array> =>
    tensor.file.read(tensor.offset + from * strideBytes, count * strideBytes, `tensor ${tensor.name}`);
  if (size(cols) === totalCols) return read(rows.start, size(rows));
  const cutBytes = rowBytes(type, size(cols));
  const cutStart = rowBytes(type, cols.start);
  const out = new Uint8Array(size(rows) * cutBytes);
  if (out.byteLength === 0) return out;
  const rowsPerPiece = Math.max(1, Math.floor(pieceBytes / strideBytes));
  for (let start = rows.start; start < rows.end; start += rowsPerPiece) {
    const count = Math.min(rowsPerPiece, rows.end - start);
    const piece = await read(start, count);
    for (let i = 0; i < count; i++) {
      const from = i * strideBytes + cutStart;
      out.set(piece.subarray(from, from + cutBytes), (start - rows.start + i) * cutBytes);
    }
  }
  return out;
}

/**
 * Row h * headDim + half * headDim/2 + i of Hugging Face is row h * headDim + 2 i + half of the file. Whole heads are
 * read, then their rows (for a bias: its elements) are put in order.
 */
async function readNeighbourPairs(
  tensor: StoredTensor,
  type: WeightType,
  shape: { readonly rows: number; readonly cols: number },
  headDim: number,
  rows: Range,
  cols: Range,
): Promise<Uint8Array> {
  const isVector = shape.rows === 1;
  const wanted = isVector ? cols : rows;
  const heads = {
    start: Math.floor(wanted.start / headDim) * headDim,
    end: Math.ceil(wanted.end / headDim) * headDim,
  };
  const stored = isVector
    ? await readRange(tensor, type, shape.cols, rows, heads)
    : await readRange(tensor, type, shape.cols, heads, cols);
  const unitBytes = rowBytes(type, isVector ? 1 : size(cols));
  const out = new Uint8Array(size(wanted) * unitBytes);
  for (let row = wanted.start; row < wanted.end; row++) {
    const within = row % headDim;
    const half = within < headDim / 2 ? 0 : 1;
    const storedRow = row - within + 2 * (within - (half * headDim) / 2) + half;
    const from = (storedRow - heads.start) * unitBytes;
    out.set(stored.subarray(from, from + unitBytes), (row - wanted.start) * unitBytes);
  }
  return out;
}

/** The stored numbers, whatever their type; columns are cut after unpacking. [size(rows), size(cols)] */
async function readFloats(tensor: StoredTensor, totalCols: number, rows: Range, cols: Range): Promise<Float32Array> {
  const { type } = tensor;
  invariant(isWeightType(type), `weights: ${tensor.name} is ${type}`);
  const bytes = await readRange(tensor, type, totalCols, rows, { start: 0, end: totalCols });
  const values = toFloat32({ rows: size(rows), cols: totalCols, type, bytes });
  return size(cols) === totalCols ? values : columns(values, totalCols, size(rows), cols);
}

/** value = fp8 * scale of its block; exact in float64, rounded once. @returns float32 bytes */
async function readFp8(
  { tensor, scale, block }: Fp8Matrix,
  totalCols: number,
  rows: Range,
  cols: Range,
): Promise<Uint8Array> {
  const count = size(rows);
  const codes = await tensor.file.read(
    tensor.offset + rows.start * totalCols,
    count * totalCols,
    `tensor ${tensor.name}`,
  );
  const width = Math.ceil(totalCols / block[1]);
  const scales =
    scale === undefined
      ? undefined
      : await readFloats(scale, width, { start: 0, end: Math.ceil(rows.end / block[0]) }, { start: 0, end: width });
  const out = new Float32Array(count * size(cols));
  for (let row = 0, to = 0; row < count; row++) {
    const scaleRow = Math.floor((rows.start + row) / block[0]) * width;
    for (let col = cols.start; col < cols.end; col++, to++) {
      const value = floatOfFp8(codes[row * totalCols + col] ?? 0);
      out[to] = scales === undefined ? value : value * (scales[scaleRow + Math.floor(col / block[1])] ?? 0);
    }
  }
  return new Uint8Array(out.buffer);
}

/** Rows of the joint matrix, per head n nope rows, then v value rows. @returns float32 bytes */
async function readLatentParts(
  key: StoredTensor, // [H, r, n]
  value: StoredTensor, // [H, v, r]
  weight: LocatedWeight,
  rows: Range,
  cols: Range,
): Promise<Uint8Array> {
  const latentDim = weight.cols;
  const nopeDim = key.shape.at(-1) ?? 1;
  const numHeads = key.shape.reduce((product, length) => product * length, 1) / (latentDim * nopeDim);
  const headRows = weight.rows / numHeads; // n + v
  const valueDim = headRows - nopeDim;
  const out = new Float32Array(size(rows) * latentDim);
  for (let head = Math.floor(rows.start / headRows); head * headRows < rows.end; head++) {
    const all = (length: number): Range => ({ start: 0, end: length });
    const keys = await readFloats(key, nopeDim, { start: head * latentDim, end: (head + 1) * latentDim }, all(nopeDim));
    const values = await readFloats(
      value,
      latentDim,
      { start: head * valueDim, end: (head + 1) * valueDim },
      all(latentDim),
    );
    for (let row = Math.max(rows.start, head * headRows); row < Math.min(rows.end, (head + 1) * headRows); row++) {
      const within = row - head * headRows;
      const to = (row - rows.start) * latentDim;
      if (within >= nopeDim) {
        out.set(values.subarray((within - nopeDim) * latentDim, (within - nopeDim + 1) * latentDim), to);
        continue;
      }
      for (let column = 0; column < latentDim; column++) out[to + column] = keys[column * nopeDim + within] ?? 0;
    }
  }
  return fromFloat32(columns(out, latentDim, size(rows), cols), 'f32');
}

/** @param values [rows, totalCols]  @returns [rows, size(cols)] */
function columns(values: Float32Array, totalCols: number, rows: number, cols: Range): Float32Array {
  const width = size(cols);
  const out = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++)
    out.set(values.subarray(row * totalCols + cols.start, row * totalCols + cols.end), row * width);
  return out;
}
