/**
 * The K-quants: super-blocks of 256 values with 8 or 16 sub-blocks, whose scales (and minima) are themselves packed
 * integers times one half float. Read dequantize.ts first. `d` and `dMin` are named as in ggml's block structures.
 */
import { halfAt } from '../config/half.ts';

/** 16 bytes of (scale, min) nibbles, 64 bytes of 2-bit values, d, dMin. */
export function unpackQ2K(blocks: DataView, from: number, out: Float32Array, to: number): void {
  const d = halfAt(blocks, from + 80);
  const dMin = halfAt(blocks, from + 82);
  for (let sub = 0; sub < 16; sub++) {
    const packed = blocks.getUint8(from + sub);
    const scale = d * (packed & 15);
    const min = dMin * (packed >> 4);
    const bytes = from + 16 + 32 * (sub >> 3) + 16 * (sub & 1);
    const shift = sub & 6; // 0, 2, 4, 6: two sub-blocks each
    for (let i = 0; i < 16; i++) out[to + 16 * sub + i] = scale * ((blocks.getUint8(bytes + i) >> shift) & 3) - min;
  }
}

/** 32 bytes of third bits, 64 bytes of 2-bit values, 12 bytes of 16 6-bit scales, d. */
export function unpackQ3K(blocks: DataView, from: number, out: Float32Array, to: number): void {
  const d = halfAt(blocks, from + 108);
  for (let sub = 0; sub < 16; sub++) {
    const low = blocks.getUint8(from + 96 + (sub & 7));
    const high = blocks.getUint8(from + 104 + (sub & 3));
    const packed = (sub < 8 ? low & 15 : low >> 4) | (((high >> (2 * (sub >> 2))) & 3) << 4);
    const scale = d * (packed - 32);
    const bytes = from + 32 + 32 * (sub >> 3) + 16 * (sub & 1);
    const highBytes = from + 16 * (sub & 1);
    const shift = sub & 6;
    for (let i = 0; i < 16; i++) {
      const bit = (blocks.getUint8(highBytes + i) >> (sub >> 1)) & 1;
      out[to + 16 * sub + i] = scale * (((blocks.getUint8(bytes + i) >> shift) & 3) - (bit === 1 ? 0 : 4));
    }
  }
}

/** d, dMin, 12 bytes of 8 6-bit (scale, min), 128 bytes of nibbles. */
export function unpackQ4K(blocks: DataView, from: number, out: Float32Array, to: number): void {
  const d = halfAt(blocks, from);
  const dMin = halfAt(blocks, from + 2);
  for (let sub = 0; sub < 8; sub++) {
    const scale = d * scaleOf(blocks, from + 4, sub);
    const min = dMin * minOf(blocks, from + 4, sub);
    const bytes = from + 16 + 32 * (sub >> 1);
    const shift = 4 * (sub & 1);
    for (let i = 0; i < 32; i++) out[to + 32 * sub + i] = scale * ((blocks.getUint8(bytes + i) >> shift) & 15) - min;
  }
}

/** As q4_K, with 32 bytes of fifth bits before the nibbles. */
export function unpackQ5K(blocks: DataView, from: number, out: Float32Array, to: number): void {
  const d = halfAt(blocks, from);
  const dMin = halfAt(blocks, from + 2);
  for (let sub = 0; sub < 8; sub++) {
    const scale = d * scaleOf(blocks, from + 4, sub);
    const min = dMin * minOf(blocks, from + 4, sub);
    const bytes = from + 48 + 32 * (sub >> 1);
    const shift = 4 * (sub & 1);
    for (let i = 0; i < 32; i++) {
      const high = (blocks.getUint8(from + 16 + i) >> sub) & 1;
      out[to + 32 * sub + i] = scale * (((blocks.getUint8(bytes + i) >> shift) & 15) | (high << 4)) - min;
    }
  }
}

/** 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed 8-bit scales, d. */
export function unpackQ6K(blocks: DataView, from: number, out: Float32Array, to: number): void {
  const d = halfAt(blocks, from + 208);
  for (let sub = 0; sub < 16; sub++) {
    const scale = d * blocks.getInt8(from + 192 + sub);
    const half = sub >> 3;
    const quarter = (sub >> 1) & 3; // of the 128 values of a half
    const within = 16 * (sub & 1);
    const lowBytes = from + 64 * half + 32 * (quarter & 1) + within;
    const highBytes = from + 128 + 32 * half + within;
    const lowShift = quarter < 2 ? 0 : 4;
    for (let i = 0; i < 16; i++) {
      const low = (blocks.getUint8(lowBytes + i) >> lowShift) & 15;
      const high = (blocks.getUint8(highBytes + i) >> (2 * quarter)) & 3;
      out[to + 16 * sub + i] = scale * ((low | (high << 4)) - 32);
    }
  }
}

/** Scales 0..3 are the low 6 bits of bytes 0..3; 4..7 nibbles of bytes 8..11 with their upper bits in bytes 0..3. */
function scaleOf(blocks: DataView, at: number, sub: number): number {
  if (sub < 4) return blocks.getUint8(at + sub) & 63;
  return (blocks.getUint8(at + sub + 4) & 15) | ((blocks.getUint8(at + sub - 4) >> 6) << 4);
}

/** Minima 0..3 are the low 6 bits of bytes 4..7; 4..7 nibbles of bytes 8..11 with their upper bits in bytes 4..7. */
function minOf(blocks: DataView, at: number, sub: number): number {
  if (sub < 4) return blocks.getUint8(at + sub + 4) & 63;
  return (blocks.getUint8(at + sub + 4) >> 4) | ((blocks.getUint8(at + sub) >> 6) << 4);
}
