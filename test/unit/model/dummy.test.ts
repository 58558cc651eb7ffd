import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { toFloat32 } from '../../../model/dequantize.ts';
import { openDummy, openModelPath } from '../../../model/dummy.ts';
import { goldenFolder } from '../../helpers/golden.ts';

const config = join(goldenFolder, 'tiny/llama-gqa/config.json');

describe('a model of random weights', () => {
  it('is found again by its path, with the same identity', async () => {
    await using made = await openDummy(config, 1);
    await using again = await openModelPath(made.path);
    expect(again.identity).toBe(made.identity);
    expect(again.config.numLayers).toBe(1);
    await using whole = await openDummy(config, 0);
    expect(whole.identity).not.toBe(made.identity);
  });

  it('has the same numbers however they are cut', async () => {
    await using model = await openDummy(config, 0);
    const { rows, cols } = model.shapeOf('gate', 1)!;
    const whole = toFloat32(await model.read('gate', 1));
    expect(whole).toHaveLength(rows * cols);
    const part = toFloat32(await model.read('gate', 1, { start: 3, end: 5 }, { start: 7, end: 11 }));
    const expected = [3, 4].flatMap((row) => [...whole.subarray(row * cols + 7, row * cols + 11)]);
    expect([...part]).toEqual(expected);
  });

  it('has other numbers in every role, layer and row, of the size that keeps products in range', async () => {
    await using model = await openDummy(config, 0);
    const gate = toFloat32(await model.read('gate', 0));
    const others = await Promise.all([model.read('up', 0), model.read('gate', 1)]);
    for (const other of others) expect(toFloat32(other)).not.toEqual(gate);
    const { cols } = model.shapeOf('gate', 0)!;
    expect(gate.subarray(0, cols)).not.toEqual(gate.subarray(cols, 2 * cols));
    const variance = gate.reduce((sum, value) => sum + value * value, 0) / gate.length;
    expect(variance * cols).toBeGreaterThan(0.8);
    expect(variance * cols).toBeLessThan(1.2);
  });

  it('has gains of one and no optional biases', async () => {
    await using model = await openDummy(config, 0);
    expect(new Set(toFloat32(await model.read('attentionNorm', 0)))).toEqual(new Set([1]));
    expect(model.shapeOf('queryBias', 0)).toBeUndefined();
  });

  it('refuses what is no config.json and more layers than there are', async () => {
    await expect(openDummy('model.gguf', 0)).rejects.toThrow('--dummy model.gguf: expected a config.json');
    await expect(openDummy(config, 99)).rejects.toThrow(/^--layers 99: .* has \d+ layers$/);
  });
});
