import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  carried,
  decodePayload,
  encodePayload,
  payloadBytes,
  payloadElements,
  type Payload,
} from '../../../collective/payload.ts';

const payloads: Payload[] = ['f32', 'f16', 'q8_0'];

function sent(data: Float32Array, payload: Payload): Float32Array {
  const bytes = Buffer.alloc(payloadBytes(data.length, payload));
  encodePayload(data, payload, bytes);
  // At any offset, as frames are cut.
  const moved = Buffer.concat([Buffer.alloc(1), bytes]).subarray(1);
  const out = new Float32Array(payloadElements(moved.length, payload) ?? NaN);
  decodePayload(moved, payload, out);
  return out;
}

describe.each(payloads)('%s', (payload) => {
  it('arrives as what its sender goes on with, however long it is', () => {
    const floats = fc.float32Array({ maxLength: 100, noNaN: true, min: -1000, max: 1000 });
    fc.assert(
      fc.property(floats, (data) => {
        const arrived = sent(data, payload);
        const own = data.slice();
        carried(own, payload);
        expect(arrived).toEqual(own);
      }),
    );
  });

  it('knows its length from its bytes', () => {
    const lengths = new Set<number>();
    for (let elements = 0; elements < 200; elements++) {
      const bytes = payloadBytes(elements, payload);
      expect(payloadElements(bytes, payload)).toBe(elements);
      lengths.add(bytes);
    }
    for (let bytes = 0; bytes < 200; bytes++)
      if (!lengths.has(bytes)) expect(payloadElements(bytes, payload)).toBe(null);
  });

  it('keeps what is not a number visible', () => {
    for (const broken of [NaN, Infinity, -Infinity])
      expect(Number.isFinite(sent(Float32Array.of(1, broken, 2), payload)[1])).toBe(false);
  });
});

it('f16 is within half a step, q8_0 within half a 127th of the largest of 32', () => {
  const data = Float32Array.from({ length: 70 }, (_, i) => Math.sin(i) * 2 ** (i / 10));
  const halves = sent(data, 'f16');
  const blocks = sent(data, 'q8_0');
  for (const [i, value] of data.entries()) {
    expect(Math.abs(halves[i]! - value)).toBeLessThanOrEqual(Math.abs(value) * 2 ** -11);
    const start = i - (i % 32);
    const largest = Math.max(...data.subarray(start, start + 32).map(Math.abs));
    expect(Math.abs(blocks[i]! - value)).toBeLessThanOrEqual(largest * (1 / 254 + 2 ** -11));
  }
});

it('carries nothing as nothing, and less than the smallest scale as 0', () => {
  expect(sent(new Float32Array(33), 'q8_0')).toEqual(new Float32Array(33));
  expect(sent(Float32Array.of(1e-9, -1e-9), 'q8_0').map(Math.abs)).toEqual(new Float32Array(2));
  // The scale is the smallest half, 6e-8, and the quotient is limited.
  expect(sent(Float32Array.of(1e-5, 5e-6), 'q8_0')[0]).toBeCloseTo(1e-5, 5);
});

it('refuses values whose scale is no half', () => {
  expect(() => sent(Float32Array.of(8.4e6), 'q8_0')).toThrow(
    "collective.payload: q8_0 carries values up to 8319008, and this model's sums have larger ones; use f32",
  );
});
