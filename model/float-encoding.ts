/**
 * Numbers to the storage types of a float checkpoint: f32, f16, bf16, rounded to nearest, ties to even. It refuses
 * numbers that the type cannot hold instead of writing infinities. Read next: transmla/write-converted.ts..
 */
import { ConfigError } from '../config/errors.ts';

export const floatTypes = ['f16', 'bf16', 'f32'] as const;
export type FloatType = (typeof floatTypes)[number];

const bytesOf: Record<FloatType, number> = { f16: 2, bf16: 2, f32: 4 };

export function bytesPerFloat(type: FloatType): number {
  return bytesOf[type];
}

/**
 * Little-endian bytes of `values`; `name` says in errors whose they are.
 * @throws ConfigError when a value is not finite or overflows the type
 */
export function encodeFloats(values: Float32Array | Float64Array, type: FloatType, name: string): Uint8Array {
  const narrow = values instanceof Float32Array ? values : Float32Array.from(values);
  const bits = new Uint32Array(narrow.buffer, narrow.byteOffset, narrow.length);
  // Exponent 255 marks infinities and NaN; f16 overflows from 65520 on, bf16 only from the last step before 2^128.
  const largest = type === 'f16' ? 0x477fefff : type === 'bf16' ? 0x7f7f7fff : 0x7f7fffff;
  for (let i = 0; i < bits.length; i++) {
    if (((bits[i] ?? 0) & 0x7fffffff) > largest)
      throw new ConfigError(
        `${name}: value ${values[i]} at index ${i} does not fit ${type}; use ${type === 'f16' ? '--dtype bf16 or ' : ''}--dtype f32, or check the source`,
      );
  }
  if (type === 'f32') return new Uint8Array(narrow.buffer, narrow.byteOffset, narrow.byteLength).slice();
  const out = new Uint16Array(bits.length);
  if (type === 'f16') for (let i = 0; i < bits.length; i++) out[i] = halfOf(bits[i] ?? 0);
  else for (let i = 0; i < bits.length; i++) out[i] = brainOf(bits[i] ?? 0);
  return new Uint8Array(out.buffer);
}

/** f16 bits of a finite f32 in range, given as bits. */
function halfOf(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  // 2^-14 and above: drop 13 bits of the fraction, rebias the exponent from 127 to 15. A carry out of the fraction raises the exponent, as it should.
  if (magnitude >= 0x38800000) return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
  if (magnitude < 0x33000000) return sign; // below half of the smallest subnormal
  const shift = 126 - (magnitude >>> 23);
  const fraction = (magnitude & 0x7fffff) | 0x800000;
  const kept = fraction >>> shift;
  const rest = fraction & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  return sign | (kept + (rest > half || (rest === half && (kept & 1) === 1) ? 1 : 0));
}

/** bf16 bits: the upper half of the f32. */
function brainOf(bits: number): number {
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}
