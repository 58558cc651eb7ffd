/**
 * From stored types to float32 and back: widens floats, unpacks ggml's quantised blocks. Results are bit for bit those
 * of ggml's plain C code: products are exact in float64, so that a value is rounded once where ggml rounds once.
 * The inverse exists for f32, f16 and bf16 only. K-quants are in dequantize-k.ts.
 */
import { invariant } from '../config/errors.ts';
import type { Weight, WeightType } from './checkpoint.ts';
import { unpackQ2K, unpackQ3K, unpackQ4K, unpackQ5K, unpackQ6K } from './dequantize-k.ts';
import { floatBits, halfAt, halfBits } from '../config/half.ts';
import { rowBytes, weightLayout } from './tensor-types.ts';

/** Unpacks the block at byte `from` into out[to ...]. */
export type UnpackBlock = (blocks: DataView, from: number, out: Float32Array, to: number) => void;

const iq4Values = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/** @returns [rows, cols], row-major */
export function toFloat32({ rows, cols, type, bytes }: Weight): Float32Array {
  invariant(
    bytes.byteLength === rows * rowBytes(type, cols),
    `toFloat32: ${type} [${rows}, ${cols}] needs ${rows * rowBytes(type, cols)} bytes, got ${bytes.byteLength}`,
  );
  const out = new Float32Array(rows * cols);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (type === 'f32') new Uint8Array(out.buffer).set(bytes);
  else if (type === 'bf16') widenBrain(view, out);
  else if (type === 'f16') for (let i = 0; i < out.length; i++) out[i] = halfAt(view, 2 * i);
  else {
    const { blockSize, blockBytes } = weightLayout(type);
    const unpack = unpackers[type];
    for (let from = 0, to = 0; to < out.length; from += blockBytes, to += blockSize) unpack(view, from, out, to);
  }
  return out;
}

/** Rounds to nearest, ties to even. @returns little-endian bytes */
export function fromFloat32(values: Float32Array, type: 'f32' | 'f16' | 'bf16'): Uint8Array {
  switch (type) {
    case 'f32':
      return new Uint8Array(values.slice().buffer);
    case 'f16':
      return encode16(floatBits(values), halfBits);
    case 'bf16':
      return encode16(floatBits(values), brainBits);
  }
}

/** A plain loop: typed-array `from` with a callback takes 160 ns a value, this takes 2. */
function encode16(bits: Uint32Array, encode: (bits: number) => number): Uint8Array {
  const out = new Uint16Array(bits.length);
  for (let i = 0; i < out.length; i++) out[i] = encode(bits[i] ?? 0);
  return new Uint8Array(out.buffer);
}

function widenBrain(view: DataView, out: Float32Array): void {
  const bits = new Uint32Array(out.buffer);
  for (let i = 0; i < bits.length; i++) bits[i] = view.getUint16(2 * i, true) << 16;
}

function brainBits(bits: number): number {
  // A NaN whose upper half is all exponent would round to infinity.
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

function unpackQ40(blocks: DataView, from: number, out: Float32Array, to: number): void {
  const d = halfAt(blocks, from);
  for (let i = 0; i < 16; i++) {
    const pair = blocks.getUint8(from + 2 + i);
    out[to + i] = d * ((pair & 15) - 8);
    out[to + i + 16] = d * ((pair >> 4) - 8);
  }
}

function unpackQ41(blocks: DataView, from: number, out: Float32Array, to: number): void {
  const d = halfAt(blocks, from);
  const m = halfAt(blocks, from + 2);
  for (let i = 0; i < 16; i++) {
    const pair = blocks.getUint8(from + 4 + i);
    out[to + i] = d * (pair & 15) + m;
    out[to + i + 16] = d * (pair >> 4) + m;
  }
}

function unpackQ50(blocks: DataView, from: number, out: Float32Array, to: number): void {
  const d = halfAt(blocks, from);
  const high = blocks.getUint32(from + 2, true);
  for (let i = 0; i < 16; i++) {
    const pair = blocks.getUint8(from + 6 + i);
    out[to + i] = d * (((pair & 15) | (((high >>> i) & 1) << 4)) - 16);
    out[to + i + 16] = d * (((pair >> 4) | (((high >>> (i + 16)) & 1) << 4)) - 16);
  }
}

function unpackQ51(blocks: DataView, from: number, out: Float32Array, to: number): void {
  const d = halfAt(blocks, from);
  const m = halfAt(blocks, from + 2);
  const high = blocks.getUint32(from + 4, true);
  for (let i = 0; i < 16; i++) {
    const pair = blocks.getUint8(from + 8 + i);
    out[to + i] = d * ((pair & 15) | (((high >>> i) & 1) << 4)) + m;
    out[to + i + 16] = d * ((pair >> 4) | (((high >>> (i + 16)) & 1) << 4)) + m;
  }
}

function unpackQ80(blocks: DataView, from: number, out: Float32Array, to: number): void {
  const d = halfAt(blocks, from);
  for (let i = 0; i < 32; i++) out[to + i] = d * blocks.getInt8(from + 2 + i);
}

function unpackIq4(blocks: DataView, from: number, out: Float32Array, to: number): void {
  const d = halfAt(blocks, from);
  for (let i = 0; i < 16; i++) {
    const pair = blocks.getUint8(from + 2 + i);
    out[to + i] = d * (iq4Values[pair & 15] ?? 0);
    out[to + i + 16] = d * (iq4Values[pair >> 4] ?? 0);
  }
}

const unpackers: Readonly<Record<Exclude<WeightType, 'f32' | 'f16' | 'bf16'>, UnpackBlock>> = {
  q4_0: unpackQ40,
  q4_1: unpackQ41,
  q5_0: unpackQ50,
  q5_1: unpackQ51,
  q8_0: unpackQ80,
  q2_K: unpackQ2K,
  q3_K: unpackQ3K,
  q4_K: unpackQ4K,
  q5_K: unpackQ5K,
  q6_K: unpackQ6K,
  iq4_nl: unpackIq4,
};
