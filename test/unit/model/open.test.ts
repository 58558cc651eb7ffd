import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { LayerRole } from '../../../model/checkpoint.ts';
import { fromFloat32, toFloat32 } from '../../../model/dequantize.ts';
import { openCheckpoint } from '../../../model/open.ts';
import { openSafetensors, writeSafetensors, type TensorSource } from '../../../model/safetensors.ts';
import { randomArray } from '../../helpers/random.ts';
import { golden, temporaryFolder } from './fixtures.ts';

const folder = temporaryFolder();
const tiny = (name: string): string => join(golden, 'tiny', name);

describe('configurations', () => {
  const configOf = async (name: string) => {
    await using checkpoint = await openCheckpoint(tiny(name));
    return checkpoint.config;
  };

  it('reads sizes', async () => {
    const config = await configOf('llama-gqa');
    expect(config).toMatchObject({
      architecture: 'llama',
      hiddenDim: 128,
      numLayers: 2,
      numHeads: 8,
      vocabSize: 272,
      contextLength: 512,
      normEps: 1e-5,
      attention: { kind: 'gqa', numKvHeads: 2, headDim: 16, scoreScale: 0.25 },
      feedForward: { kind: 'gated', dim: 192, activation: 'silu' },
      tiedEmbeddings: false,
    });
    expect(config.rope.frequencies.length).toBe(8);
    expect(config.rope).toMatchObject({ attentionFactor: 1, interleaved: false });
  });

  it('head_dim of its own', async () => {
    expect((await configOf('llama-odd-heads')).attention).toMatchObject({ numKvHeads: 3, headDim: 16 });
  });

  it('no lm_head: tied', async () => {
    await using checkpoint = await openCheckpoint(tiny('llama-tied-embeddings'));
    expect(checkpoint.config.tiedEmbeddings).toBe(true);
    expect(checkpoint.shapeOf('head')).toBeUndefined();
    await expect(checkpoint.read('head')).rejects.toThrow('weights: this llama model has no head');
  });

  it('biases only where attention_bias says so', async () => {
    await using biased = await openCheckpoint(tiny('llama-attention-bias'));
    expect(biased.shapeOf('keyBias', 1)).toEqual({ rows: 1, cols: 32, type: 'f32' });
    await using plain = await openCheckpoint(tiny('llama-gqa'));
    expect(plain.shapeOf('keyBias', 1)).toBeUndefined();
  });

  it('a single file beside its config.json', async () => {
    await using file = await openCheckpoint(join(tiny('llama-gqa'), 'model.safetensors'));
    await using whole = await openCheckpoint(tiny('llama-gqa'));
    expect(file.identity).toBe(whole.identity);
    expect(file.weightFileBytes).toBe(whole.weightFileBytes);
  });

  it('identity tells models apart', async () => {
    const identities = new Set<string>();
    for (const name of [
      'llama-gqa',
      'llama-odd-heads',
      'llama-yarn',
      'llama-attention-bias',
      'llama-bf16',
      'llama-f16',
    ]) {
      await using checkpoint = await openCheckpoint(tiny(name));
      identities.add(checkpoint.identity);
    }
    expect(identities.size).toBe(6);
  });
});

describe('read', () => {
  it.each(['llama-gqa', 'llama-sharded', 'llama-bf16'])('%s: whole weights', async (name) => {
    await using checkpoint = await openCheckpoint(tiny(name));
    await using store = await openSafetensors(tiny(name));
    const tensor = store.tensors.get('model.layers.1.mlp.down_proj.weight')!;
    const weight = await checkpoint.read('down', 1);
    expect([weight.rows, weight.cols, weight.type]).toEqual([...tensor.shape, tensor.type]);
    expect(Buffer.compare(weight.bytes, await tensor.file.read(tensor.offset, tensor.bytes, 'down'))).toBe(0);
  });

  it('rows and columns', async () => {
    await using checkpoint = await openCheckpoint(tiny('llama-gqa'));
    const whole = toFloat32(await checkpoint.read('gate', 0)); // [192, 128]
    for (const [rows, cols] of [
      [
        { start: 3, end: 8 },
        { start: 0, end: 128 },
      ],
      [
        { start: 0, end: 192 },
        { start: 5, end: 6 },
      ],
      [
        { start: 191, end: 192 },
        { start: 100, end: 128 },
      ],
      [
        { start: 4, end: 4 },
        { start: 0, end: 128 },
      ],
      [
        { start: 4, end: 6 },
        { start: 7, end: 7 },
      ],
    ] as const) {
      const weight = await checkpoint.read('gate', 0, rows, cols);
      const expected: number[] = [];
      for (let row = rows.start; row < rows.end; row++)
        for (let col = cols.start; col < cols.end; col++) expected.push(whole[row * 128 + col]!);
      expect([weight.rows, weight.cols]).toEqual([rows.end - rows.start, cols.end - cols.start]);
      expect([...toFloat32(weight)]).toEqual(expected);
    }
  });

  it('refuses ranges that are none', async () => {
    await using checkpoint = await openCheckpoint(tiny('llama-gqa'));
    await expect(checkpoint.read('gate', 0, { start: 190, end: 193 })).rejects.toThrow(
      'weights: rows of layers.0 gate: 190..193 is not a range of 192 in blocks of 1',
    );
  });
});

describe('converted folders', () => {
  const sizes = { hidden: 24, heads: 3, latent: 10, rope: 8, nope: 4, value: 6, feedForward: 20, vocab: 30 };
  const config = {
    model_type: 'tpla_mla',
    architectures: ['TplaForCausalLM'],
    hidden_size: sizes.hidden,
    num_hidden_layers: 1,
    num_attention_heads: sizes.heads,
    intermediate_size: sizes.feedForward,
    vocab_size: sizes.vocab,
    max_position_embeddings: 64,
    rms_norm_eps: 1e-5,
    hidden_act: 'silu',
    kv_lora_rank: sizes.latent,
    qk_rope_head_dim: sizes.rope,
    qk_nope_head_dim: sizes.nope,
    v_head_dim: sizes.value,
    q_lora_rank: null,
    latent_norm: false,
    softmax_scale: 0.3,
    rope_interleave: false,
    rope_frequencies: [1, 0.5, 0.25, 0.125],
    tie_word_embeddings: true,
    attention_bias: true,
  };

  const write = async (
    name: string,
    keys: object,
    nope: number,
    own: readonly [string, readonly number[]][],
  ): Promise<string> => {
    const path = join(folder(), name);
    await mkdir(path);
    await writeFile(join(path, 'config.json'), JSON.stringify({ ...config, ...keys }));
    const { hidden, heads, latent, rope, value, feedForward, vocab } = sizes;
    const layer = 'model.layers.0.';
    const shapes: [string, readonly number[]][] = [
      ['model.embed_tokens.weight', [vocab, hidden]],
      ['model.norm.weight', [hidden]],
      [`${layer}input_layernorm.weight`, [hidden]],
      [`${layer}post_attention_layernorm.weight`, [hidden]],
      [`${layer}self_attn.q_proj.weight`, [heads * (nope + rope), hidden]],
      [`${layer}self_attn.kv_a_proj_with_mqa.weight`, [latent + rope, hidden]],
      [`${layer}self_attn.kv_b_proj.weight`, [heads * (nope + value), latent]],
      [`${layer}self_attn.o_proj.weight`, [hidden, heads * value]],
      [`${layer}mlp.gate_proj.weight`, [feedForward, hidden]],
      [`${layer}mlp.up_proj.weight`, [feedForward, hidden]],
      [`${layer}mlp.down_proj.weight`, [hidden, feedForward]],
      ...own,
    ];
    const tensors = shapes.map(([tensor, shape], i): TensorSource => {
      const values = randomArray(
        i,
        shape.reduce((a, b) => a * b, 1),
      );
      return { name: tensor, type: 'f32', shape, read: () => fromFloat32(values, 'f32') };
    });
    await writeSafetensors(join(path, 'model.safetensors'), tensors);
    return path;
  };

  it('are MLA models', async () => {
    const path = await write('converted', {}, sizes.nope, [
      ['model.layers.0.self_attn.q_proj.bias', [36]],
      ['model.layers.0.self_attn.rope_frequencies', [4]],
    ]);
    await using checkpoint = await openCheckpoint(path);
    expect(checkpoint.config.attention).toEqual({
      kind: 'mla',
      latentDim: 10,
      ropeDim: 8,
      nopeDim: 4,
      valueDim: 6,
      queryLoraDim: null,
      latentNormEps: null,
      scoreScale: 0.3,
      scoreSoftcap: 0,
    });
    expect(checkpoint.config.rope).toEqual({
      frequencies: [1, 0.5, 0.25, 0.125],
      attentionFactor: 1,
      interleaved: false,
    });
    const roles: LayerRole[] = [
      'query',
      'queryBias',
      'latentDown',
      'latentDownBias',
      'latentUp',
      'output',
      'ropeFrequencies',
    ];
    expect(roles.map((role) => checkpoint.shapeOf(role, 0))).toEqual([
      { rows: 36, cols: 24, type: 'f32' },
      { rows: 1, cols: 36, type: 'f32' },
      { rows: 18, cols: 24, type: 'f32' },
      undefined,
      { rows: 30, cols: 10, type: 'f32' },
      { rows: 24, cols: 18, type: 'f32' },
      { rows: 1, cols: 4, type: 'f32' },
    ]);
  });

  it('may have no nope part', async () => {
    const path = await write('no-nope', { qk_nope_head_dim: 0, attention_bias: false }, 0, []);
    await using checkpoint = await openCheckpoint(path);
    expect(checkpoint.shapeOf('latentUp', 0)).toEqual({ rows: 18, cols: 10, type: 'f32' });
    expect(checkpoint.shapeOf('query', 0)).toEqual({ rows: 24, cols: 24, type: 'f32' });
  });

  it('need a table of the right length', async () => {
    const path = await write('table', { rope_frequencies: [1, 0.5] }, sizes.nope, []);
    await expect(openCheckpoint(path)).rejects.toThrow(
      'config.json: rope_frequencies has 2 entries, expected 4 = qk_rope_head_dim / 2',
    );
  });
});
