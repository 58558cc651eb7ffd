/**
 * Computed weights to the storage types of a converted checkpoint. It refuses numbers that the type cannot hold instead
 * of writing infinities. Read next: write-converted.ts.
 */
import { ConfigError } from '../../config/errors.ts';
import { fromFloat32, toFloat32 } from '../dequantize.ts';
import type { Dense } from './dense.ts';

export const floatTypes = ['f16', 'bf16', 'f32'] as const;
export type FloatType = (typeof floatTypes)[number];

/** Of matrices: floats, or blocks of 32 numbers in 8 bits each with a common scale (ggml's q8_0). */
export const matrixTypes = [...floatTypes, 'q8_0'] as const;
export type MatrixType = (typeof matrixTypes)[number];

const blockLength = 32;

/** The first magnitudes that round to infinity. */
const limits: Record<FloatType, number> = { f16: 65520, bf16: 2 ** 128 - 2 ** 119, f32: 2 ** 128 - 2 ** 103 };

/**
 * Little-endian bytes of `values`, rounded to nearest, ties to even; `name` says in errors whose they are.
 * @throws ConfigError when a value is not finite or overflows the type
 */
export function encodeFloats(values: Float32Array | Float64Array, type: FloatType, name: string): Uint8Array {
  const limit = limits[type];
  for (let i = 0; i < values.length; i++) {
    const value = values[i] ?? 0;
    if (!(Math.abs(value) < limit))
      throw new ConfigError(
        `${name}: value ${value} at index ${i} does not fit ${type}; use ${type === 'f16' ? '--dtype bf16 or ' : ''}--dtype f32, or check the source`,
      );
  }
  return fromFloat32(values instanceof Float32Array ? values : Float32Array.from(values), type);
}

/** What a matrix is written as when `type` is asked for: rows that are not whole blocks stay floats. */
export function storedType(type: MatrixType, cols: number): MatrixType {
  return type === 'q8_0' && cols % blockLength !== 0 ? 'f16' : type;
}

/** For matrices that are taken apart while they are loaded. */
export function floatTypeOf(type: MatrixType): FloatType {
  return type === 'q8_0' ? 'f16' : type;
}

/** Bytes of a matrix of storedType. @throws as encodeFloats */
export function encodeMatrix({ data, cols }: Pick<Dense, 'data' | 'cols'>, type: MatrixType, name: string): Uint8Array {
  const stored = storedType(type, cols);
  if (stored !== 'q8_0') return encodeFloats(data, stored, name);
  // Scales are halves: what a half cannot hold is refused, though some of it would fit.
  encodeFloats(data, 'f16', name);
  return packBlocks(Float32Array.from(data));
}

/** The matrix as it will be read back. @throws as encodeFloats */
export function roundMatrix(matrix: Dense, type: MatrixType, name: string): Float32Array {
  const { rows, cols } = matrix;
  return toFloat32({ rows, cols, type: storedType(type, cols), bytes: encodeMatrix(matrix, type, name) });
}

/** q8_0 as ggml's plain C code makes it: a half d = max |x| / 127, then round(x / d), halves away from zero. */
function packBlocks(values: Float32Array): Uint8Array {
  const bytesPerBlock = 2 + blockLength;
  const out = new Uint8Array((values.length / blockLength) * bytesPerBlock);
  const view = new DataView(out.buffer);
  for (let from = 0, to = 0; from < values.length; from += blockLength, to += bytesPerBlock) {
    let largest = 0;
    for (let i = 0; i < blockLength; i++) largest = Math.max(largest, Math.abs(values[from + i] ?? 0));
    const scale = Math.fround(largest / 127);
    const inverse = scale === 0 ? 0 : Math.fround(1 / scale);
    out.set(fromFloat32(Float32Array.of(scale), 'f16'), to);
    for (let i = 0; i < blockLength; i++) {
      const value = Math.fround((values[from + i] ?? 0) * inverse);
      view.setInt8(to + 2 + i, Math.sign(value) * Math.round(Math.abs(value)));
    }
  }
  return out;
}

/** The values as they will be read back from a checkpoint of this type. @throws as encodeFloats */
export function roundFloats(values: Float64Array, type: FloatType, name: string): Float32Array {
  const bytes = encodeFloats(values, type, name);
  return toFloat32({ rows: 1, cols: values.length, type, bytes });
}
