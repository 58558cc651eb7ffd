import { describe, expect, it } from 'vitest';
import { encodeFloats, encodeMatrix, roundMatrix, storedType } from '../../../../model/transmla/encode-floats.ts';
import { quantize } from '../../../../worker/kernels/ggml/quantize.ts';
import { seededRandom } from '../../../helpers/random.ts';

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

describe('encodeMatrix', () => {
  const next = seededRandom(4);
  const matrix = { rows: 3, cols: 64, data: Float64Array.from({ length: 192 }, () => 8 * next() ** 3 - 4) };
  matrix.data.fill(0, 64, 96);

  it('packs q8_0 as ggml does, bit for bit', () => {
    const expected = quantize('q8_0', Float32Array.from(matrix.data), 3, 64);
    expect(Buffer.from(encodeMatrix(matrix, 'q8_0', 'w')).equals(expected)).toBe(true);
  });

  it('gives back what a reader of the file gets', () => {
    const back = roundMatrix(matrix, 'q8_0', 'w');
    back.forEach((value, i) => expect(Math.abs(value - (matrix.data[i] ?? 0))).toBeLessThan(4.1 / 127 / 2 + 1e-3));
    expect([...back.subarray(64, 96)]).toEqual(new Array(32).fill(0));
  });

  it('leaves rows that are not whole blocks in half precision', () => {
    expect([storedType('q8_0', 48), storedType('q8_0', 96), storedType('bf16', 48)]).toEqual(['f16', 'q8_0', 'bf16']);
    expect(encodeMatrix({ cols: 3, data: Float64Array.of(1, 2, 3) }, 'q8_0', 'w')).toHaveLength(6);
  });

  it('refuses numbers whose scale would overflow', () => {
    expect(() => encodeMatrix({ cols: 32, data: new Float64Array(32).fill(1e9) }, 'q8_0', 'w')).toThrow('does not fit');
  });
});
