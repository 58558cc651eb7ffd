/**
 * DeepSeek's own inference configuration (`dim`, `n_layers`, `kv_lora_rank`, ...) in the keys of its Hugging Face config.json,
 * so that a model which is only known by the former can be planned. What the file leaves out has the values of DeepSeek's
 * published inference code: rotary base 10000, yarn from 4096 tokens by 40. Weights in that layout are not read.
 */
import { z } from 'zod';
import { layerCount, parseKeys, positive, size } from './hub-config.ts';

const nativeSchema = z.looseObject({
  vocab_size: size,
  dim: size,
  inter_dim: size,
  moe_inter_dim: size,
  n_layers: layerCount,
  n_dense_layers: z.number().int().min(0),
  n_heads: size,
  n_routed_experts: size,
  n_shared_experts: z.number().int().min(0),
  n_activated_experts: size,
  n_expert_groups: size.default(1),
  n_limited_groups: size.default(1),
  route_scale: positive.default(1),
  score_func: z.enum(['softmax', 'sigmoid']).default('softmax'),
  q_lora_rank: z.number().int().min(0),
  kv_lora_rank: size,
  qk_nope_head_dim: size,
  qk_rope_head_dim: size,
  v_head_dim: size,
  mscale: z.number().default(1),
  rope_theta: positive.default(10000),
  rope_factor: positive.default(40),
  original_seq_len: size.default(4096),
  beta_fast: positive.default(32),
  beta_slow: positive.default(1),
  dtype: z.enum(['bf16', 'fp8']).default('bf16'),
});

export function isDeepseekNative(config: unknown): boolean {
  return typeof config === 'object' && config !== null && !('model_type' in config) && 'n_dense_layers' in config;
}

/** @throws ConfigError listing every key that is missing or wrong */
export function hubKeysOfDeepseekNative(config: unknown, where: string): Record<string, unknown> {
  const keys = parseKeys(nativeSchema, config, where);
  const isSigmoid = keys.score_func === 'sigmoid';
  return {
    model_type: isSigmoid ? 'deepseek_v3' : 'deepseek_v2',
    vocab_size: keys.vocab_size,
    hidden_size: keys.dim,
    intermediate_size: keys.inter_dim,
    moe_intermediate_size: keys.moe_inter_dim,
    num_hidden_layers: keys.n_layers,
    first_k_dense_replace: keys.n_dense_layers,
    num_attention_heads: keys.n_heads,
    num_key_value_heads: keys.n_heads,
    n_routed_experts: keys.n_routed_experts,
    n_shared_experts: keys.n_shared_experts,
    num_experts_per_tok: keys.n_activated_experts,
    n_group: keys.n_expert_groups,
    topk_group: keys.n_limited_groups,
    topk_method: isSigmoid ? 'noaux_tc' : keys.n_expert_groups > 1 ? 'group_limited_greedy' : 'greedy',
    norm_topk_prob: isSigmoid,
    scoring_func: keys.score_func,
    routed_scaling_factor: keys.route_scale,
    moe_layer_freq: 1,
    q_lora_rank: keys.q_lora_rank === 0 ? null : keys.q_lora_rank,
    kv_lora_rank: keys.kv_lora_rank,
    qk_nope_head_dim: keys.qk_nope_head_dim,
    qk_rope_head_dim: keys.qk_rope_head_dim,
    v_head_dim: keys.v_head_dim,
    hidden_act: 'silu',
    rms_norm_eps: 1e-6,
    tie_word_embeddings: false,
    attention_bias: false,
    max_position_embeddings: keys.original_seq_len * keys.rope_factor,
    rope_theta: keys.rope_theta,
    rope_scaling: {
      type: 'yarn',
      factor: keys.rope_factor,
      original_max_position_embeddings: keys.original_seq_len,
      beta_fast: keys.beta_fast,
      beta_slow: keys.beta_slow,
      mscale: keys.mscale,
      mscale_all_dim: keys.mscale,
    },
    torch_dtype: 'bfloat16',
    ...(keys.dtype === 'fp8' && { quantization_config: { quant_method: 'fp8', weight_block_size: [128, 128] } }),
  };
}
