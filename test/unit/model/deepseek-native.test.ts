/** DeepSeek's own inference configuration, planned as its Hugging Face config.json would be. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { openSizes } from '../../../model/config-only.ts';
import { temporaryFolder } from './fixtures.ts';

const folder = temporaryFolder();

/** Small, with the keys of DeepSeek-V3's file. */
const native = {
  vocab_size: 1000,
  dim: 64,
  inter_dim: 96,
  moe_inter_dim: 32,
  n_layers: 3,
  n_dense_layers: 1,
  n_heads: 4,
  n_routed_experts: 8,
  n_shared_experts: 1,
  n_activated_experts: 2,
  n_expert_groups: 2,
  n_limited_groups: 1,
  route_scale: 2.5,
  score_func: 'sigmoid',
  q_lora_rank: 24,
  kv_lora_rank: 32,
  qk_nope_head_dim: 16,
  qk_rope_head_dim: 8,
  v_head_dim: 16,
  dtype: 'fp8',
};

async function sizesOf(keys: object) {
  const path = join(folder(), `native-${Math.random()}.json`);
  await writeFile(path, JSON.stringify(keys));
  return openSizes(path);
}

test('sizes, routing and storage', async () => {
  await using sizes = await sizesOf(native);
  expect(sizes.config).toMatchObject({
    architecture: 'deepseek_v3',
    numLayers: 3,
    attention: { kind: 'mla', latentDim: 32, ropeDim: 8, nopeDim: 16, valueDim: 16, queryLoraDim: 24 },
    experts: { count: 8, perToken: 2, dim: 32, sharedDim: 32, layers: [false, true, true] },
  });
  expect(sizes.shapeOf('expertGate', 1)).toMatchObject({ rows: 8 * 32, cols: 64, fp8: true });
});

test('without query compression and groups: DeepSeek-V2-Lite', async () => {
  const { score_func: _, n_expert_groups: __, n_limited_groups: ___, dtype: ____, ...lite } = native;
  await using sizes = await sizesOf({ ...lite, q_lora_rank: 0, route_scale: 1 });
  expect(sizes.config).toMatchObject({ architecture: 'deepseek_v2', attention: { queryLoraDim: null } });
  expect(sizes.shapeOf('expertGate', 1)).toMatchObject({ type: 'bf16' });
});

test('every wrong key is named', async () => {
  await expect(sizesOf({ ...native, kv_lora_rank: 0, n_heads: 'four' })).rejects.toThrow(/n_heads: .*kv_lora_rank: /);
});
