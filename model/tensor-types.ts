/**
 * Every storage type that can stand in a model file, with its block size: what a file reader needs to check lengths.
 * Names follow ggml, in lower case but for the K of K-quants. Those of WeightType can also be computed with
 * (dequantize.ts); the rest is known by size only, so that a file holding them can be listed and refused by name.
 */
import type { WeightType } from './checkpoint.ts';

export interface TypeLayout {
  /** Values in a block; a row is a whole number of blocks. */
  readonly blockSize: number;
  readonly blockBytes: number;
}

const weightLayouts: Readonly<Record<WeightType, TypeLayout>> = {
  f32: layout(1, 4),
  f16: layout(1, 2),
  bf16: layout(1, 2),
  q4_0: layout(32, 18),
  q4_1: layout(32, 20),
  q5_0: layout(32, 22),
  q5_1: layout(32, 24),
  q8_0: layout(32, 34),
  q2_K: layout(256, 84),
  q3_K: layout(256, 110),
  q4_K: layout(256, 144),
  q5_K: layout(256, 176),
  q6_K: layout(256, 210),
  iq4_nl: layout(32, 18),
};

const layouts: ReadonlyMap<string, TypeLayout> = new Map([
  ...Object.entries(weightLayouts),
  ['q8_1', layout(32, 36)],
  ['q8_K', layout(256, 292)],
  ['iq1_s', layout(256, 50)],
  ['iq1_m', layout(256, 56)],
  ['iq2_xxs', layout(256, 66)],
  ['iq2_xs', layout(256, 74)],
  ['iq2_s', layout(256, 82)],
  ['iq3_xxs', layout(256, 98)],
  ['iq3_s', layout(256, 110)],
  ['iq4_xs', layout(256, 136)],
  ['tq1_0', layout(256, 54)],
  ['tq2_0', layout(256, 66)],
  ['mxfp4', layout(32, 17)],
  ['bool', layout(1, 1)],
  ['i8', layout(1, 1)],
  ['u8', layout(1, 1)],
  ['f8_e4m3', layout(1, 1)],
  ['f8_e5m2', layout(1, 1)],
  ['i16', layout(1, 2)],
  ['u16', layout(1, 2)],
  ['i32', layout(1, 4)],
  ['u32', layout(1, 4)],
  ['i64', layout(1, 8)],
  ['u64', layout(1, 8)],
  ['f64', layout(1, 8)],
]);

/** Numbers of the types in GGUF's tensor table (ggml's `ggml_type`); the gaps are types that ggml has removed. */
export const ggufTypeNames: ReadonlyMap<number, string> = new Map([
  [0, 'f32'],
  [1, 'f16'],
  [2, 'q4_0'],
  [3, 'q4_1'],
  [6, 'q5_0'],
  [7, 'q5_1'],
  [8, 'q8_0'],
  [9, 'q8_1'],
  [10, 'q2_K'],
  [11, 'q3_K'],
  [12, 'q4_K'],
  [13, 'q5_K'],
  [14, 'q6_K'],
  [15, 'q8_K'],
  [16, 'iq2_xxs'],
  [17, 'iq2_xs'],
  [18, 'iq3_xxs'],
  [19, 'iq1_s'],
  [20, 'iq4_nl'],
  [21, 'iq3_s'],
  [22, 'iq2_s'],
  [23, 'iq4_xs'],
  [24, 'i8'],
  [25, 'i16'],
  [26, 'i32'],
  [27, 'i64'],
  [28, 'f64'],
  [29, 'iq1_m'],
  [30, 'bf16'],
  [34, 'tq1_0'],
  [35, 'tq2_0'],
  [39, 'mxfp4'],
]);

/** undefined for a name that no file format has. */
export function layoutOf(type: string): TypeLayout | undefined {
  return layouts.get(type);
}

export function isWeightType(type: string): type is WeightType {
  return Object.hasOwn(weightLayouts, type);
}

export function weightLayout(type: WeightType): TypeLayout {
  return weightLayouts[type];
}

/** Bytes of one row of `cols` values; `cols` must be a multiple of the type's block. */
export function rowBytes(type: WeightType, cols: number): number {
  const { blockSize, blockBytes } = weightLayouts[type];
  return (cols / blockSize) * blockBytes;
}

function layout(blockSize: number, blockBytes: number): TypeLayout {
  return { blockSize, blockBytes };
}
