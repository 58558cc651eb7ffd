import { cp, mkdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ConfigError } from '../../../config/errors.ts';
import { fromFloat32 } from '../../../model/dequantize.ts';
import { openCheckpoint } from '../../../model/open.ts';
import { openSafetensors, writeSafetensors, type TensorSource } from '../../../model/safetensors.ts';
import { floatsOf, golden, temporaryFolder } from './fixtures.ts';

const folder = temporaryFolder();
const tiny = (name: string): string => join(golden, 'tiny', name);

describe('mistakes', () => {
  const copyOf = async (name: string, change: (config: Record<string, unknown>) => void): Promise<string> => {
    const path = join(folder(), name);
    await cp(tiny('llama-gqa'), path, { recursive: true });
    const config = JSON.parse(await readFile(join(path, 'config.json'), 'utf8')) as Record<string, unknown>;
    change(config);
    await writeFile(join(path, 'config.json'), JSON.stringify(config));
    return path;
  };
  const messageOf = async (path: string): Promise<string> => {
    try {
      await openCheckpoint(path);
    } catch (error) {
      expect(error).toBeInstanceOf(ConfigError);
      return error instanceof Error ? error.message : '';
    }
    return 'opened';
  };

  it('no such path', async () => {
    expect(await messageOf('/nowhere/model')).toBe(
      'model: /nowhere/model: no such file or folder; expected a Hugging Face folder, a .gguf or a .safetensors file',
    );
  });

  it('no config.json', async () => {
    const path = join(folder(), 'bare');
    await mkdir(path);
    expect(await messageOf(path)).toBe(
      `model: no ${join(path, 'config.json')}: a Hugging Face model needs its config.json beside the weights`,
    );
  });

  it('unknown family', async () => {
    const path = await copyOf('unknown', (config) => (config['model_type'] = 'gpt_neox'));
    expect(await messageOf(path)).toMatch(
      /config\.json: model_type 'gpt_neox' is not supported; known: llama, mistral, .*tpla_mla$/,
    );
  });

  it('all wrong keys at once', async () => {
    const path = await copyOf('keys', (config) => {
      delete config['hidden_size'];
      config['num_hidden_layers'] = 2.5;
      config['vocab_size'] = 'many';
    });
    const message = await messageOf(path);
    expect(message).toMatch(/hidden_size: .*; num_hidden_layers: .*got 2\.5; vocab_size: .*got "many"/);
  });

  it('shape', async () => {
    const path = await copyOf('shape', (config) => (config['num_key_value_heads'] = 4));
    expect(await messageOf(path)).toBe(
      'weights: layers.0 key is [32, 128], expected [64, 128] = (4 KV heads x 16) x hidden (tensor model.layers.0.self_attn.k_proj.weight); do configuration and weights belong together?',
    );
  });

  it('missing tensor', async () => {
    const path = await copyOf('layers', (config) => (config['num_hidden_layers'] = 3));
    expect(await messageOf(path)).toBe(
      'weights: layers.2 attentionNorm is missing: no tensor model.layers.2.input_layernorm.weight in 21; do configuration and weights belong together?',
    );
  });

  it('truncated weights', async () => {
    const path = await copyOf('truncated', () => undefined);
    await truncate(join(path, 'model.safetensors'), 100_000);
    expect(await messageOf(path)).toMatch(
      /^model\.safetensors: tensors end at byte \d+, but the file has 100000; is the download complete\?$/,
    );
  });

  it('heads that do not divide', async () => {
    const path = await copyOf('heads', (config) => (config['num_key_value_heads'] = 3));
    expect(await messageOf(path)).toBe('config.json: 8 query heads cannot share 3 KV heads; expected a divisor');
  });

  it.each([
    [
      { rope_type: 'dynamic', factor: 2 },
      "config.json: rope scaling 'dynamic' is not supported; default, linear, llama3 and yarn are",
    ],
    [{ type: 'linear' }, "config.json: rope scaling 'linear' needs the key factor"],
  ])('rope scaling %j', async (scaling, expected) => {
    const path = await copyOf(`rope-${expected.length}`, (config) => (config['rope_scaling'] = scaling));
    expect(await messageOf(path)).toBe(expected);
  });

  it('quantised by another program', async () => {
    const path = await copyOf('quantised', (config) => (config['quantization_config'] = { quant_method: 'awq' }));
    expect(await messageOf(path)).toMatch(/^config\.json: quantization_config: /);
  });

  it('a type that cannot be computed with', async () => {
    const path = join(folder(), 'integers');
    await mkdir(path);
    await writeFile(join(path, 'config.json'), await readFile(join(golden, 'stories260K', 'config.json')));
    const floats = await floatsOf(join(golden, 'stories260K', 'model.safetensors'));
    await using store = await openSafetensors(join(golden, 'stories260K', 'model.safetensors'));
    const tensors = [...floats].map(([name, values]): TensorSource => {
      const isEmbedding = name === 'model.embed_tokens.weight';
      const type = isEmbedding ? 'i32' : 'f32';
      return { name, type, shape: store.tensors.get(name)!.shape, read: () => fromFloat32(values, 'f32') };
    });
    await writeSafetensors(join(path, 'model.safetensors'), tensors);
    expect(await messageOf(path)).toBe(
      'weights: embedding is stored as i32, which cannot be computed with (tensor model.embed_tokens.weight); use a file in f32, f16, bf16, q8_0, q4_K or another common type',
    );
  });
});
