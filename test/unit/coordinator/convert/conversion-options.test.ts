import { expect, test } from 'vitest';
import { optionsFor } from '../../../../coordinator/convert/conversion-options.ts';
import type { WeightType } from '../../../../model/checkpoint.ts';

const stored = (type: WeightType) => ({ shapeOf: () => ({ rows: 64, cols: 64, type }) });

test('converted matrices are in blocks where those of the source are, unless a type is asked for', () => {
  const chosen = (type: WeightType) => optionsFor(stored(type), { dtype: 'auto' }).dtype;
  expect(['f32', 'bf16', 'q4_1', 'q4_K'].map((type) => chosen(type as WeightType))).toEqual([
    'f16',
    'f16',
    'q8_0',
    'q8_0',
  ]);
  expect(optionsFor(stored('q4_1'), { dtype: 'bf16' }).dtype).toBe('bf16');
});
