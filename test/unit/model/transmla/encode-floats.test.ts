import { describe, expect, it } from 'vitest';
import { encodeFloats } from '../../../../model/transmla/encode-floats.ts';

const halves = (...values: number[]) => [
  ...new Uint16Array(encodeFloats(Float64Array.of(...values), 'f16', 'w').buffer),
];

describe('encodeFloats', () => {
  it('rounds float64 to the type', () => {
    expect(halves(1, -2, 1 + 2 ** -11, 2 ** -24)).toEqual([0x3c00, 0xc000, 0x3c00, 1]);
    expect([...new Float32Array(encodeFloats(Float64Array.of(0.1), 'f32', 'w').buffer)]).toEqual([Math.fround(0.1)]);
  });

  it('refuses what would become an infinity, naming weight, index and way out', () => {
    expect(halves(65519)).toEqual([0x7bff]);
    expect(() => halves(1, 65520)).toThrow(
      'w: value 65520 at index 1 does not fit f16; use --dtype bf16 or --dtype f32, or check the source',
    );
    expect(() => encodeFloats(Float32Array.of(NaN), 'f32', 'w')).toThrow('w: value NaN at index 0 does not fit f32');
    expect(() => encodeFloats(Float64Array.of(-1e39), 'bf16', 'w')).toThrow(
      'value -1e+39 at index 0 does not fit bf16',
    );
  });
});
