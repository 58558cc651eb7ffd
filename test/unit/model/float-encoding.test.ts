import { describe, expect, it } from 'vitest';
import { encodeFloats } from '../../../model/float-encoding.ts';

/** Decodes by the definition of the format, for round trips over all bit patterns. */
function halfValue(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function halves(values: number[]): number[] {
  return [...new Uint16Array(encodeFloats(Float32Array.from(values), 'f16', 'test').buffer)];
}

describe('f16', () => {
  const finite = Array.from({ length: 65536 }, (_, bits) => bits).filter((bits) => ((bits >> 10) & 31) !== 31);

  it('writes every finite f16 value back as itself', () => {
    expect(halves(finite.map(halfValue))).toEqual(finite);
  });

  it('rounds halfway cases to the even neighbour and others to the nearest', () => {
    const positive = finite.filter((bits) => bits < 0x7bff);
    const middle = positive.map((bits) => (halfValue(bits) + halfValue(bits + 1)) / 2);
    expect(halves(middle)).toEqual(positive.map((bits) => (bits % 2 === 0 ? bits : bits + 1)));
    expect(halves(middle.map((value) => value * (1 + 1e-6)))).toEqual(positive.map((bits) => bits + 1));
    expect(halves(middle.map((value) => value * (1 - 1e-6)))).toEqual(positive);
  });

  it('refuses what would become an infinity', () => {
    expect(halves([65519])).toEqual([0x7bff]);
    expect(() => halves([1, 65520])).toThrow(
      'test: value 65520 at index 1 does not fit f16; use --dtype bf16 or --dtype f32, or check the source',
    );
    expect(() => encodeFloats(Float32Array.of(NaN), 'f32', 'x')).toThrow('x: value NaN at index 0 does not fit f32');
    expect(() => encodeFloats(Float64Array.of(1e39), 'f32', 'x')).toThrow('does not fit f32');
  });
});

describe('bf16 and f32', () => {
  it('rounds to the nearest of 8 significant bits, ties to even', () => {
    const encode = (value: number) => new Uint16Array(encodeFloats(Float32Array.of(value), 'bf16', 'x').buffer)[0];
    expect(encode(1)).toBe(0x3f80);
    expect(encode(1 + 2 ** -8)).toBe(0x3f80);
    expect(encode(1 + 2 ** -8 + 2 ** -20)).toBe(0x3f81);
    expect(encode(-(1 + 3 * 2 ** -8))).toBe(0xbf82);
  });

  it('copies f32 without sharing memory', () => {
    const values = Float32Array.of(1.5, -2.25);
    const bytes = encodeFloats(values, 'f32', 'x');
    values[0] = 7;
    expect([...new Float32Array(bytes.buffer)]).toEqual([1.5, -2.25]);
  });
});
