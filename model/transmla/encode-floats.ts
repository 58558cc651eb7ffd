/**
 * Computed weights to the storage types of a converted checkpoint. It refuses numbers that the type cannot hold instead
 * of writing infinities. Read next: write-converted.ts.
 */
import { ConfigError } from '../../config/errors.ts';
import { fromFloat32, toFloat32 } from '../dequantize.ts';

export const floatTypes = ['f16', 'bf16', 'f32'] as const;
export type FloatType = (typeof floatTypes)[number];

/** The first magnitudes that round to infinity. */
const limits: Record<FloatType, number> = { f16: 65520, bf16: 2 ** 128 - 2 ** 119, f32: 2 ** 128 - 2 ** 103 };

export function bytesPerFloat(type: FloatType): number {
  return type === 'f32' ? 4 : 2;
}

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

/** The values as they will be read back from a checkpoint of this type. @throws as encodeFloats */
export function roundFloats(values: Float64Array, type: FloatType, name: string): Float32Array {
  const bytes = encodeFloats(values, type, name);
  return toFloat32({ rows: 1, cols: values.length, type, bytes });
}
