/**
 * What the values of a sum travel as between hosts: float32, halves, or blocks of 32 8-bit numbers with a half as their
 * scale (q8_0, as ggml's, except that a shorter last block is not filled up). Lossy payloads are the same for everyone:
 * a rank goes on with `carried` values, those that the others receive. Little-endian. Read next: frame.ts, exchange.ts.
 */
import { payloadNames } from '../config/cluster.ts';
import { ConfigError } from '../config/errors.ts';
import { floatBits, halfAt, halfBits } from '../config/half.ts';

export type Payload = (typeof payloadNames)[number];

const blockSize = 32;
const scaleBytes = 2;
const blockBytes = scaleBytes + blockSize;
const largestHalf = 65504;
const infiniteHalf = 0x7c00;
/** For the bits of a scale. */
const exactScale = new Float32Array(1);
const exactScaleBits = floatBits(exactScale);

export function payloadBytes(elements: number, payload: Payload): number {
  if (payload === 'f32') return 4 * elements;
  return payload === 'f16' ? 2 * elements : elements + scaleBytes * Math.ceil(elements / blockSize);
}

/** null: no number of elements takes so many bytes. */
export function payloadElements(bytes: number, payload: Payload): number | null {
  if (payload === 'f32') return bytes % 4 === 0 ? bytes / 4 : null;
  if (payload === 'f16') return bytes % 2 === 0 ? bytes / 2 : null;
  const rest = bytes % blockBytes;
  return rest > 0 && rest <= scaleBytes ? null : bytes - scaleBytes * Math.ceil(bytes / blockBytes);
}

/**
 * @param out of payloadBytes; overwritten
 * @throws ConfigError when a value is finite and too large for a half
 */
export function encodePayload(data: Float32Array, payload: Payload, out: Buffer): void {
  if (payload === 'f32') {
    out.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return;
  }
  const view = new DataView(out.buffer, out.byteOffset, out.length);
  if (payload === 'f16') {
    const bits = floatBits(data);
    for (let i = 0; i < data.length; i++) {
      const half = halfBits(bits[i] ?? 0);
      if ((half & 0x7fff) === infiniteHalf) checkRange(data[i] ?? 0, payload);
      view.setUint16(2 * i, half, true);
    }
    return;
  }
  for (let start = 0, at = 0; start < data.length; start += blockSize, at += blockBytes)
    encodeBlock(data, start, Math.min(start + blockSize, data.length), view, at);
}

/** @param out of payloadElements; overwritten */
export function decodePayload(bytes: Buffer, payload: Payload, out: Float32Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (payload === 'f32') for (let i = 0; i < out.length; i++) out[i] = view.getFloat32(4 * i, true);
  else if (payload === 'f16') for (let i = 0; i < out.length; i++) out[i] = halfAt(view, 2 * i);
  else {
    for (let start = 0, at = 0; start < out.length; start += blockSize, at += blockBytes) {
      const scale = halfAt(view, at);
      const end = Math.min(start + blockSize, out.length);
      for (let i = start; i < end; i++) out[i] = scale * view.getInt8(at + scaleBytes + i - start);
    }
  }
}

/** Replaces the values by those that a receiver of them gets. */
export function carried(data: Float32Array, payload: Payload): void {
  if (payload === 'f32') return;
  const bytes = Buffer.allocUnsafe(payloadBytes(data.length, payload));
  encodePayload(data, payload, bytes);
  decodePayload(bytes, payload, data);
}

/** Writes the values from `start` to `end`: their scale, then their numbers. */
function encodeBlock(data: Float32Array, start: number, end: number, out: DataView, at: number): void {
  let largest = 0;
  for (let i = start; i < end; i++) {
    const size = Math.abs(data[i] ?? 0);
    // Not a number stays the largest: what is broken stays visibly so.
    if (!(size < Infinity)) largest = NaN;
    else if (size > largest) largest = size;
  }
  exactScale[0] = largest / 127;
  const half = halfBits(exactScaleBits[0] ?? 0);
  if ((half & 0x7fff) === infiniteHalf) checkRange(exactScale[0], 'q8_0');
  out.setUint16(at, half, true);
  const scale = halfAt(out, at);
  const inverse = scale > 0 ? 1 / scale : 0;
  for (let i = start; i < end; i++) {
    // Of a scale near 0 the rounding is large: the quotient may pass 127.
    const quotient = Math.round((data[i] ?? 0) * inverse);
    out.setInt8(at + scaleBytes + i - start, Math.max(-127, Math.min(127, quotient)));
  }
}

/** @param value whose nearest half is infinite  @throws ConfigError when the value itself is not */
function checkRange(value: number, payload: Payload): void {
  if (!Number.isFinite(value)) return;
  const limit = payload === 'f16' ? largestHalf : 127 * largestHalf;
  throw new ConfigError(
    `collective.payload: ${payload} carries values up to ${limit}, and this model's sums have larger ones; use f32` +
      (payload === 'f16' ? ' or q8_0' : ''),
  );
}
