/** config.json without weights: families, their features, and the sizes that planning shows. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { planShards } from '../../../config/shard-plan.ts';
import { cacheNumbersByScheme } from '../../../coordinator/plan-report.ts';
import { openSizes } from '../../../model/config-only.ts';
import { temporaryFolder } from './fixtures.ts';

const folder = temporaryFolder();
let written = 0;

async function open(config: Record<string, unknown>) {
  const path = join(folder(), `config-${written++}.json`);
  await writeFile(path, JSON.stringify(config));
  return openSizes(path);
}

const gqa = {
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  vocab_size: 100,
  max_position_embeddings: 256,
};

const deepseekV3 = {
  model_type: 'deepseek_v3',
  hidden_size: 7168,
  intermediate_size: 18432,
  moe_intermediate_size: 2048,
  num_hidden_layers: 61,
  num_attention_heads: 128,
  num_key_value_heads: 128,
  vocab_size: 129280,
  max_position_embeddings: 163840,
  kv_lora_rank: 512,
  q_lora_rank: 1536,
  qk_rope_head_dim: 64,
  qk_nope_head_dim: 128,
  v_head_dim: 128,
  n_routed_experts: 256,
  n_shared_experts: 1,
  num_experts_per_tok: 8,
  n_group: 8,
  topk_group: 4,
  first_k_dense_replace: 3,
  routed_scaling_factor: 2.5,
  rope_scaling: {
    type: 'yarn',
    factor: 40,
    original_max_position_embeddings: 4096,
    beta_fast: 32,
    beta_slow: 1,
    mscale: 1,
    mscale_all_dim: 1,
  },
};

describe('DeepSeek-V3', () => {
  it('caches 576 numbers per token and layer, 320 in two groups', async () => {
    const { config } = await open(deepseekV3);
    expect(cacheNumbersByScheme(config, 2)).toMatchObject({ mla: 576, 'tpla in 2 groups': 320 });
    expect(cacheNumbersByScheme(config, 4)).toMatchObject({ 'tpla in 2 groups': 320, 'tpla in 4 groups': 192 });
  });

  it('has dense layers, then experts; scores scaled by mscale squared', async () => {
    await using checkpoint = await open(deepseekV3);
    const { config } = checkpoint;
    expect(config.experts?.layers.indexOf(true)).toBe(3);
    expect(checkpoint.shapeOf('gate', 2)).toMatchObject({ rows: 18432 });
    expect(checkpoint.shapeOf('gate', 3)).toBeUndefined();
    expect(checkpoint.shapeOf('expertDown', 3)).toMatchObject({ rows: 256 * 7168, cols: 2048, type: 'bf16' });
    const mscale = 0.1 * Math.log(40) + 1;
    expect(config.attention.scoreScale).toBeCloseTo(192 ** -0.5 * mscale ** 2, 12);
    expect(config.rope).toMatchObject({ attentionFactor: 1, interleaved: true });
    await expect(checkpoint.read('embedding')).rejects.toThrow(/only config-\d+\.json is there, no weights to read/);
  });

  it('cuts every expert, or deals experts out', async () => {
    const { config } = await open(deepseekV3);
    const request = { worldSize: 3, scheme: 'mla', latentGroups: 1, blockSize: 1 } as const;
    const columns = planShards(config, request).ranks.map(({ experts, expertColumns }) => [experts, expertColumns]);
    expect(columns[1]).toEqual([
      { start: 0, end: 256 },
      { start: 683, end: 1366 },
    ]);
    const dealt = planShards(config, { ...request, expertSharding: 'experts' }).ranks;
    expect(dealt.map(({ experts }) => experts.end)).toEqual([86, 171, 256]);
    expect(dealt[1]).toMatchObject({
      expertColumns: { start: 0, end: 2048 },
      sharedColumns: { start: 683, end: 1366 },
    });
  });

  it('refuses routing that is not its own', async () => {
    await expect(open({ ...deepseekV3, scoring_func: 'softmax' })).rejects.toThrow(/scoring_func: .*got "softmax"/);
    await expect(open({ ...deepseekV3, n_group: 7 })).rejects.toThrow(
      'config.json: 4 of 7 groups of 256 experts; expected a divisor of 256, and at most all groups',
    );
    await expect(open({ ...deepseekV3, model_type: 'deepseek_v32' })).rejects.toThrow(
      /model_type 'deepseek_v32' is not supported; known: .*deepseek_v3/,
    );
    await expect(open({ ...deepseekV3, quantization_config: { quant_method: 'awq' } })).rejects.toThrow(
      /quant_method 'awq' is not supported; fp8 is, or a GGUF file/,
    );
  });
});

describe('features by family', () => {
  it('heads: KV heads and head_dim where the file has none', async () => {
    const { config } = await open({ ...gqa, model_type: 'llama' });
    expect(config.attention).toMatchObject({ numKvHeads: 4, headDim: 16, headNorms: false });
  });

  it('linear rope under the old key', async () => {
    const plain = await open({ ...gqa, model_type: 'llama' });
    const scaled = await open({ ...gqa, model_type: 'llama', rope_scaling: { type: 'linear', factor: 4 } });
    expect(scaled.config.rope.frequencies).toEqual(plain.config.rope.frequencies.map((frequency) => frequency / 4));
  });

  it.each([
    [{ model_type: 'mistral', sliding_window: 8 }, [8, 8, 8, 8]],
    [{ model_type: 'mistral', sliding_window: null }, [0, 0, 0, 0]],
    [{ model_type: 'mistral' }, [4096, 4096, 4096, 4096]],
    [{ model_type: 'qwen2', sliding_window: 8, max_window_layers: 1 }, [0, 0, 0, 0]],
    [{ model_type: 'qwen2', sliding_window: 8, max_window_layers: 1, use_sliding_window: true }, [0, 8, 8, 8]],
    [
      {
        model_type: 'qwen3',
        sliding_window: 8,
        use_sliding_window: true,
        layer_types: ['full_attention', 'full_attention', 'full_attention', 'sliding_attention'],
      },
      [0, 0, 0, 8],
    ],
    [{ model_type: 'gemma2', sliding_window: 8 }, [8, 0, 8, 0]],
  ])('windows of %j', async (keys, windows) => {
    expect((await open({ ...gqa, ...keys })).config.slidingWindows).toEqual(windows);
  });

  it('biases: qwen2 on queries, keys and values', async () => {
    await using checkpoint = await open({ ...gqa, model_type: 'qwen2' });
    expect(checkpoint.shapeOf('queryBias', 0)).toMatchObject({ cols: 64 });
    expect(checkpoint.shapeOf('outputBias', 0)).toBeUndefined();
  });

  it('qwen3-moe: dense layers where the file says so', async () => {
    const { config } = await open({
      ...gqa,
      model_type: 'qwen3_moe',
      num_experts: 8,
      num_experts_per_tok: 2,
      moe_intermediate_size: 24,
      decoder_sparse_step: 2,
      mlp_only_layers: [3],
    });
    expect(config.experts?.layers).toEqual([false, true, false, false]);
    expect(config.experts?.routing.normalize).toBe(false);
  });

  it('gemma2: scale, caps and the embedding', async () => {
    const { config } = await open({
      ...gqa,
      model_type: 'gemma2',
      query_pre_attn_scalar: 144,
      attn_logit_softcapping: 50,
      final_logit_softcapping: 30,
    });
    expect(config.attention).toMatchObject({ headDim: 256, scoreScale: 1 / 12, scoreSoftcap: 50 });
    expect(config).toMatchObject({ embeddingScale: 8, logitSoftcap: 30, postNorms: true, tiedEmbeddings: true });
  });
});

it('a folder with config.json and no weights counts as its configuration', async () => {
  const path = join(folder(), 'bare');
  await mkdir(path);
  await writeFile(join(path, 'config.json'), JSON.stringify({ ...gqa, model_type: 'llama', torch_dtype: 'float32' }));
  await using checkpoint = await openSizes(path);
  expect(checkpoint.shapeOf('embedding')).toEqual({ rows: 100, cols: 64, type: 'f32' });
});
