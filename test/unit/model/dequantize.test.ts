import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { InvariantError } from '../../../config/errors.ts';
import { fromFloat32, toFloat32 } from '../../../model/dequantize.ts';
import { openGguf } from '../../../model/gguf.ts';
import { isWeightType } from '../../../model/tensor-types.ts';
import { floatsOf, golden } from './fixtures.ts';

const floatTypes = ['F32', 'F16', 'BF16'];
const blockTypes = ['Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K', 'IQ4_NL'];

describe('toFloat32', () => {
  it.each([...floatTypes, ...blockTypes])('%s is the reference, bit for bit', async (type) => {
    await using file = await openGguf(join(golden, 'quants', `${type}.gguf`));
    const expected = await floatsOf(join(golden, 'quants', `${type}.safetensors`));
    expect([...file.tensors.keys()].sort()).toEqual([...expected.keys()].sort());
    for (const [name, tensor] of file.tensors) {
      if (!isWeightType(tensor.type)) throw new Error(`${name} is ${tensor.type}`);
      const bytes = await tensor.file.read(tensor.offset, tensor.bytes, name);
      const cols = tensor.shape.at(-1) ?? 1;
      const rows = tensor.shape.reduce((a, b) => a * b, 1) / cols;
      const actual = toFloat32({ rows, cols, type: tensor.type, bytes });
      // -0 and 0 count as equal in quantised types: implementations differ in the sign of a zero product.
      const normal = (values: Float32Array): Float32Array =>
        floatTypes.includes(type) ? values : values.map((value) => (value === 0 ? 0 : value));
      expect(bitsOf(normal(actual))).toEqual(bitsOf(normal(expected.get(name)!)));
    }
  });

  it('takes bytes at any offset of their buffer', () => {
    const shifted = new Uint8Array(9);
    new DataView(shifted.buffer).setFloat32(1, 1.5, true);
    new DataView(shifted.buffer).setFloat32(5, -2.25, true);
    expect([...toFloat32({ rows: 1, cols: 2, type: 'f32', bytes: shifted.subarray(1) })]).toEqual([1.5, -2.25]);
  });

  it('takes no rows', () => {
    expect(toFloat32({ rows: 0, cols: 256, type: 'q4_K', bytes: new Uint8Array(0) }).length).toBe(0);
  });

  it('refuses bytes that are not the shape', () => {
    expect(() => toFloat32({ rows: 2, cols: 32, type: 'q8_0', bytes: new Uint8Array(34) })).toThrow(
      new InvariantError('toFloat32: q8_0 [2, 32] needs 68 bytes, got 34'),
    );
  });
});

describe('fromFloat32', () => {
  it('gives back every half and every bfloat16', () => {
    for (const type of ['f16', 'bf16'] as const) {
      const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
      const values = toFloat32({ rows: 1, cols: 65536, type, bytes: new Uint8Array(all.buffer) });
      const back = new Uint16Array(fromFloat32(values, type).buffer);
      const isNan = (bits: number): boolean => Number.isNaN(values[bits]);
      for (let bits = 0; bits < 65536; bits++) {
        // A signalling NaN comes back quiet.
        if (isNan(bits)) expect(Number.isNaN(values[back[bits]!])).toBe(true);
        else if (back[bits] !== bits) expect(back[bits]).toBe(bits);
      }
    }
  });

  it.each(['f16', 'bf16'] as const)('%s rounds to the nearest, ties to even', (type) => {
    const all = Uint16Array.from({ length: type === 'f16' ? 0x7c00 : 0x7f80 }, (_, i) => i);
    const values = toFloat32({ rows: 1, cols: all.length, type, bytes: new Uint8Array(all.buffer) }); // ascending
    const between: number[] = [];
    const expected: number[] = [];
    for (let i = 0; i + 1 < values.length; i += 7) {
      const [low, high] = [values[i]!, values[i + 1]!];
      const middle = low + (high - low) / 2;
      const bits = new Uint32Array(Float32Array.of(middle).buffer)[0]!;
      const above = new Float32Array(Uint32Array.of(bits + 1).buffer)[0]!;
      const below = new Float32Array(Uint32Array.of(bits - 1).buffer)[0]!;
      between.push(middle, -middle, above, below);
      const even = i % 2 === 0 ? i : i + 1;
      expected.push(even, even | 0x8000, i + 1, i);
    }
    expect([...new Uint16Array(fromFloat32(Float32Array.from(between), type).buffer)]).toEqual(expected);
  });

  it('overflows to infinity at the right place', () => {
    const halves = new Uint16Array(
      fromFloat32(Float32Array.of(65519.996, 65520, -1e9, Infinity, 2 ** -25, 2 ** -25 * 1.001), 'f16').buffer,
    );
    expect([...halves]).toEqual([0x7bff, 0x7c00, 0xfc00, 0x7c00, 0, 1]);
  });

  it('copies float32', () => {
    const values = Float32Array.of(1, 2);
    const bytes = fromFloat32(values, 'f32');
    values[0] = 9;
    expect([...new Float32Array(bytes.buffer)]).toEqual([1, 2]);
  });
});

function bitsOf(values: Float32Array): Uint32Array {
  return new Uint32Array(values.buffer, values.byteOffset, values.length);
}
