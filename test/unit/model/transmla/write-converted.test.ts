import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Weight } from '../../../../model/checkpoint.ts';
import { openCheckpoint } from '../../../../model/open.ts';
import { toFloat32 } from '../../../../model/dequantize.ts';
import { openSafetensors } from '../../../../model/safetensors.ts';
import { latentRotation } from '../../../../model/transmla/latent-rotation.ts';
import type { MatrixType } from '../../../../model/transmla/encode-floats.ts';
import { convertPublished, type PublishedSettings } from '../../../../model/transmla/published.ts';
import { headLayout, readGqaMaps } from '../../../../model/transmla/read-layer.ts';
import { encodeLayer, type EncodedLayer, writeConverted } from '../../../../model/transmla/write-converted.ts';
import { randomInputs } from './random-layer.ts';

const golden = new URL('../../../golden/tiny/', import.meta.url).pathname;
let folder: string;
beforeAll(async () => (folder = await mkdtemp(join(tmpdir(), 'converted-'))));
afterAll(() => rm(folder, { recursive: true }));

async function convert(name: string, to: string, settings: PublishedSettings, dtype: MatrixType): Promise<string> {
  await using source = await openCheckpoint(join(golden, name));
  const layout = headLayout(source.config);
  const layers: EncodedLayer[] = [];
  for (let layer = 0; layer < source.config.numLayers; layer++) {
    const { moment } = randomInputs(90, source.config.hiddenDim, 3 + layer);
    const maps = convertPublished(await readGqaMaps(source, layer), moment, layout, source.config.rope, settings);
    layers.push(encodeLayer(layer, maps, { dtype, rotation: latentRotation(maps, moment) }));
  }
  const path = join(folder, to);
  await mkdir(path);
  await writeConverted(
    source,
    layers,
    path,
    { converted: dtype, untouched: dtype === 'q8_0' ? 'keep' : dtype, portable: false, near: null },
    { method: 'published', seed: 1 },
  );
  return path;
}

function expectSameWeight({ bytes, ...actual }: Weight, { bytes: expectedBytes, ...expected }: Weight) {
  expect(actual).toEqual(expected);
  expect(Buffer.from(bytes).equals(expectedBytes)).toBe(true);
}

describe('writeConverted', () => {
  it('writes what the reader of converted checkpoints opens, untouched weights unchanged', async () => {
    const path = await convert('llama-gqa', 'a', { ropeDim: 12, latentDim: 20, freqfold: 1, balance: 1 }, 'f32');
    await using source = await openCheckpoint(join(golden, 'llama-gqa'));
    await using converted = await openCheckpoint(path);
    expect(converted.config).toMatchObject({
      architecture: 'tpla_mla',
      numLayers: source.config.numLayers,
      contextLength: source.config.contextLength,
      normEps: source.config.normEps,
      tiedEmbeddings: false,
      feedForward: source.config.feedForward,
      attention: {
        kind: 'mla',
        latentDim: 20,
        ropeDim: 12,
        nopeDim: 16,
        valueDim: 16,
        latentNormEps: null,
        scoreScale: 0.25,
      },
    });
    // 6 slots over 8 frequencies are chosen by energy, so that every layer has a table of its own.
    const { config } = converted;
    const table = toFloat32(await converted.read('ropeFrequencies', 1));
    for (const frequency of table) expect(source.config.rope.frequencies.map(Math.fround)).toContain(frequency);
    expect(toFloat32(await converted.read('ropeFrequencies', 0))).toEqual(Float32Array.from(config.rope.frequencies));
    for (const role of ['embedding', 'head', 'finalNorm'] as const)
      expectSameWeight(await converted.read(role), await source.read(role));
    for (const role of ['attentionNorm', 'feedForwardNorm', 'gate', 'up', 'down', 'output'] as const)
      expectSameWeight(await converted.read(role, 1), await source.read(role, 1));
    expect(converted.shapeOf('queryBias', 0)).toBeUndefined();
  });

  it('keeps biases, and the output bias of the source', async () => {
    const path = await convert(
      'llama-attention-bias',
      'b',
      { ropeDim: 32, latentDim: 32, freqfold: 1, balance: 1 },
      'f16',
    );
    await using source = await openCheckpoint(join(golden, 'llama-attention-bias'));
    await using converted = await openCheckpoint(path);
    expectSameWeight(await converted.read('outputBias', 1), await source.read('outputBias', 1));
    expect(converted.shapeOf('queryBias', 1)?.cols).toBe(4 * 32);
    expect(converted.shapeOf('latentDownBias', 1)?.cols).toBe(64);
    expect(converted.shapeOf('gate', 1)?.type).toBe('f16');
  });

  it('writes 8-bit blocks where asked, of what is multiplied as it is', async () => {
    const settings = { ropeDim: 16, latentDim: 32, freqfold: 1, balance: 1 };
    await using source = await openCheckpoint(join(golden, 'llama-gqa'));
    await using floats = await openCheckpoint(await convert('llama-gqa', 'f', settings, 'f32'));
    await using blocks = await openCheckpoint(await convert('llama-gqa', 'q', settings, 'q8_0'));
    for (const [role, type] of [
      ['query', 'q8_0'],
      ['latentDown', 'q8_0'],
      ['latentUp', 'f16'],
      ['gate', source.shapeOf('gate', 1)?.type],
    ] as const) {
      expect([role, blocks.shapeOf(role, 1)?.type]).toEqual([role, type]);
      const [expected, actual] = [toFloat32(await floats.read(role, 1)), toFloat32(await blocks.read(role, 1))];
      const largest = Math.max(...expected.map(Math.abs));
      expect(Math.max(...actual.map((value, i) => Math.abs(value - (expected[i] ?? 0))))).toBeLessThan(largest / 200);
    }
  });

  it('writes principal axes of every latent, and the same bytes for the same input', async () => {
    const settings = { ropeDim: 16, latentDim: 24, freqfold: 2, balance: 1 };
    const [one, two] = [
      await convert('llama-gqa', 'c', settings, 'f16'),
      await convert('llama-gqa', 'd', settings, 'f16'),
    ];
    for (const name of ['config.json', 'model.safetensors', 'tpla_rotation.safetensors'])
      expect((await readFile(join(one, name))).equals(await readFile(join(two, name))), name).toBe(true);
    await using rotation = await openSafetensors(join(one, 'tpla_rotation.safetensors'));
    expect([...rotation.tensors].map(([name, { shape }]) => [name, shape])).toContainEqual(['layers.1.pca', [24, 24]]);
    expect(JSON.parse(await readFile(join(one, 'config.json'), 'utf8'))).toMatchObject({
      model_type: 'tpla_mla',
      kv_lora_rank: 24,
      qk_rope_head_dim: 16,
      tpla_conversion: { method: 'published', seed: 1 },
    });
  });
});
