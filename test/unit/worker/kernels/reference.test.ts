import { describe, expect, it } from 'vitest';
import { createReferenceKernels } from '../../../../worker/kernels/reference.ts';
import { decodeHalf, roundToHalf } from '../../../../worker/kernels/reference/half.ts';
import { REFERENCE_TOLERANCES } from '../../../helpers/tolerances.ts';
import { describeKernels } from '../../../suites/kernels.ts';

describeKernels('reference', createReferenceKernels, { tolerances: REFERENCE_TOLERANCES });

describe('half precision', () => {
  it('decodes and keeps all 65536 bit patterns', () => {
    const values = Array.from({ length: 65536 }, (_, bits) => decodeHalf(bits));
    expect(values.filter((value) => !Object.is(roundToHalf(value), value))).toEqual([]);
    // 2046 patterns are NaN, which a Set holds once, and 0 equals -0.
    expect(new Set(values).size).toBe(65536 - 2046);
    expect(decodeHalf(0x3c00)).toBe(1);
    expect(decodeHalf(0xc000)).toBe(-2);
    expect(decodeHalf(0x7bff)).toBe(65504);
    expect(decodeHalf(0x0001)).toBe(2 ** -24);
    expect(decodeHalf(0xfc00)).toBe(-Infinity);
  });

  it('rounds to the nearest value, ties to even', () => {
    expect(roundToHalf(1 + 2 ** -11)).toBe(1);
    expect(roundToHalf(1 + 3 * 2 ** -11)).toBe(1 + 2 ** -9);
    expect(roundToHalf(-(1 + 3 * 2 ** -11))).toBe(-(1 + 2 ** -9));
    expect(roundToHalf(65519)).toBe(65504);
    expect(roundToHalf(65520)).toBe(Infinity);
    expect(roundToHalf(-1e30)).toBe(-Infinity);
    expect(roundToHalf(2 ** -25)).toBe(0);
    expect(roundToHalf(3 * 2 ** -25)).toBe(2 ** -23);
  });
});

describe('the reference backend', () => {
  it('refuses quantised weights, foreign tensors and indices out of range', () => {
    using kernels = createReferenceKernels();
    expect(kernels.supportsWeights('q8_0')).toBe(false);
    expect(() => kernels.allocate('q8_0', [2, 32])).toThrow('allocate: q8_0 [2, 32], expected i32, f32, f16, bf16');
    expect(() => kernels.download({ type: 'f32', shape: [1] }, new Float32Array(1))).toThrow('made by another backend');
    const table = kernels.allocate('f32', [4, 2]);
    const indices = kernels.allocate('i32', [1]);
    kernels.upload(indices, new Uint8Array(Int32Array.of(4).buffer));
    using programs = kernels.compile([(ops) => [ops.gatherRows(table, indices)]]);
    expect(() => programs.run(0)).toThrow('gatherRows: index 4 of token 0 is outside 0 .. 3');
  });
});
