/**
 * DeepSeek-V2, V3, R1 and Kimi-K2: latent attention with neighbour-pair rope, an optional low-rank query, and experts
 * behind the first dense layers. V2 routes by softmax, V3 by biased sigmoid scores; the published layers for predicting
 * further tokens are ignored. Refuses the sparse attention of V3.2, which has a model_type of its own.
 */
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import { plainFeatures, type ExpertsConfig, type MlaConfig, type RoutingConfig } from '../../config/model-config.ts';
import { ropeTable, yarnMscale } from '../rope.ts';
import { without, type ModelDescription, type Role, type TensorNames, type Tensors } from './description.ts';
import {
  hubActivation,
  hubRope,
  layerCount,
  parseKeys,
  positive,
  quantizationField,
  ropeFields,
  size,
} from './hub-config.ts';
import { expertNames, isTied } from './hub-decoder.ts';
import { checkedExperts, noGroups } from './routing.ts';

/** The reference's latent norms ignore rms_norm_eps. */
const latentNormEps = 1e-6;

const names: TensorNames = {
  embedding: 'model.embed_tokens.weight',
  head: 'lm_head.weight',
  finalNorm: 'model.norm.weight',
  attentionNorm: 'model.layers.{layer}.input_layernorm.weight',
  query: 'model.layers.{layer}.self_attn.q_proj.weight',
  queryDown: 'model.layers.{layer}.self_attn.q_a_proj.weight',
  queryDownBias: 'model.layers.{layer}.self_attn.q_a_proj.bias',
  queryDownNorm: 'model.layers.{layer}.self_attn.q_a_layernorm.weight',
  queryUp: 'model.layers.{layer}.self_attn.q_b_proj.weight',
  latentDown: 'model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight',
  latentDownBias: 'model.layers.{layer}.self_attn.kv_a_proj_with_mqa.bias',
  latentNorm: 'model.layers.{layer}.self_attn.kv_a_layernorm.weight',
  latentUp: 'model.layers.{layer}.self_attn.kv_b_proj.weight',
  output: 'model.layers.{layer}.self_attn.o_proj.weight',
  outputBias: 'model.layers.{layer}.self_attn.o_proj.bias',
  feedForwardNorm: 'model.layers.{layer}.post_attention_layernorm.weight',
  gate: 'model.layers.{layer}.mlp.gate_proj.weight',
  up: 'model.layers.{layer}.mlp.up_proj.weight',
  down: 'model.layers.{layer}.mlp.down_proj.weight',
  ...expertNames,
  routerBias: 'model.layers.{layer}.mlp.gate.e_score_correction_bias',
  sharedGate: 'model.layers.{layer}.mlp.shared_experts.gate_proj.weight',
  sharedUp: 'model.layers.{layer}.mlp.shared_experts.up_proj.weight',
  sharedDown: 'model.layers.{layer}.mlp.shared_experts.down_proj.weight',
};

const schema = z.object({
  ...ropeFields,
  ...quantizationField,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  vocab_size: size,
  rms_norm_eps: positive.default(1e-6),
  hidden_act: z.string().default('silu'),
  tie_word_embeddings: z.boolean().default(false),
  attention_bias: z.boolean().default(false),
  kv_lora_rank: size,
  q_lora_rank: size.nullish(),
  qk_rope_head_dim: size,
  qk_nope_head_dim: size,
  v_head_dim: size,
  rope_interleave: z.boolean().default(true),
  moe_intermediate_size: size.nullish(),
  n_routed_experts: size.nullish(),
  n_shared_experts: z.number().int().nonnegative().nullish(),
  num_experts_per_tok: size.nullish(),
  routed_scaling_factor: positive.default(1),
  first_k_dense_replace: z.number().int().nonnegative().default(0),
  moe_layer_freq: z.literal(1).default(1),
  n_group: size.nullish(),
  topk_group: size.nullish(),
});

const v2Schema = schema.extend({
  topk_method: z.enum(['greedy', 'group_limited_greedy']).default('greedy'),
  scoring_func: z.literal('softmax').default('softmax'),
});

const v3Schema = schema.extend({
  topk_method: z.literal('noaux_tc').default('noaux_tc'),
  scoring_func: z.literal('sigmoid').default('sigmoid'),
  norm_topk_prob: z.boolean().default(true),
});

type Keys = z.infer<typeof schema>;

/** @throws ConfigError listing the keys of config.json that are missing, wrong or not supported */
export function describeHubDeepseek2(config: unknown, tensors: Tensors | undefined): ModelDescription {
  const keys = parseKeys(v2Schema, config, 'config.json');
  // The reference normalises no weights here, whatever norm_topk_prob says.
  return describe('deepseek_v2', keys, tensors, {
    scoring: 'softmax',
    biased: false,
    groups: keys.topk_method === 'greedy' ? noGroups : groupsOf(keys, 1),
    normalize: false,
    scale: keys.routed_scaling_factor,
  });
}

/** @throws ConfigError as above */
export function describeHubDeepseek3(config: unknown, tensors: Tensors | undefined): ModelDescription {
  return describeV3('deepseek_v3', config, tensors);
}

/** The architecture of DeepSeek-V3 with other sizes. @throws ConfigError as above */
export function describeHubKimi2(config: unknown, tensors: Tensors | undefined): ModelDescription {
  return describeV3('kimi_k2', config, tensors);
}

function describeV3(architecture: string, config: unknown, tensors: Tensors | undefined): ModelDescription {
  const keys = parseKeys(v3Schema, config, 'config.json');
  return describe(architecture, keys, tensors, {
    scoring: 'sigmoid',
    biased: true,
    groups: groupsOf(keys, 2),
    normalize: keys.norm_topk_prob,
    scale: keys.routed_scaling_factor,
  });
}

function describe(
  architecture: string,
  keys: Keys,
  tensors: Tensors | undefined,
  routing: RoutingConfig,
): ModelDescription {
  const { theta, scaling, mscaleAllDim } = hubRope(keys);
  const tied = isTied(keys, tensors);
  const experts = expertsOf(keys, routing);
  const mscale = scaling.kind === 'yarn' && mscaleAllDim !== 0 ? yarnMscale(scaling.factor, mscaleAllDim) : 1;
  if (keys.qk_rope_head_dim % 2 !== 0)
    throw new ConfigError(`config.json: qk_rope_head_dim: ${keys.qk_rope_head_dim}, expected an even number`);
  const attention: MlaConfig = {
    kind: 'mla',
    latentDim: keys.kv_lora_rank,
    ropeDim: keys.qk_rope_head_dim,
    nopeDim: keys.qk_nope_head_dim,
    valueDim: keys.v_head_dim,
    queryLoraDim: keys.q_lora_rank ?? null,
    latentNormEps,
    scoreScale: (keys.qk_nope_head_dim + keys.qk_rope_head_dim) ** -0.5 * mscale ** 2,
    scoreSoftcap: 0,
  };
  return {
    config: {
      ...plainFeatures,
      architecture,
      hiddenDim: keys.hidden_size,
      numLayers: keys.num_hidden_layers,
      numHeads: keys.num_attention_heads,
      vocabSize: keys.vocab_size,
      contextLength: keys.max_position_embeddings,
      normEps: keys.rms_norm_eps,
      attention,
      rope: { ...ropeTable(theta, keys.qk_rope_head_dim, scaling), interleaved: keys.rope_interleave },
      feedForward: { kind: 'gated', dim: keys.intermediate_size, activation: hubActivation(keys.hidden_act) },
      experts,
      tiedEmbeddings: tied,
    },
    names: without(names, absentRoles(keys, tied, experts)),
    optional: [],
    neighbourPairs: [],
    scaleBlock: keys.quantization_config?.weight_block_size ?? undefined,
  };
}

function absentRoles(keys: Keys, tied: boolean, experts: ExpertsConfig | null): Role[] {
  const roles: Role[] = tied ? ['head'] : [];
  if (keys.q_lora_rank) roles.push('query');
  else roles.push('queryDown', 'queryDownBias', 'queryDownNorm', 'queryUp');
  if (!keys.attention_bias) roles.push('queryDownBias', 'latentDownBias', 'outputBias');
  if (experts === null) roles.push('router', 'expertGate', 'expertUp', 'expertDown');
  else if (experts.layers.every(Boolean)) roles.push('gate', 'up', 'down');
  if (experts === null || !experts.routing.biased) roles.push('routerBias');
  if (experts === null || experts.sharedDim === 0) roles.push('sharedGate', 'sharedUp', 'sharedDown');
  return roles;
}

function expertsOf(keys: Keys, routing: RoutingConfig): ExpertsConfig | null {
  if (!keys.n_routed_experts) return null;
  const { moe_intermediate_size: dim, num_experts_per_tok: perToken } = keys;
  if (!dim || !perToken)
    throw new ConfigError('config.json: n_routed_experts needs moe_intermediate_size and num_experts_per_tok');
  const experts: ExpertsConfig = {
    layers: Array.from({ length: keys.num_hidden_layers }, (_, layer) => layer >= keys.first_k_dense_replace),
    count: keys.n_routed_experts,
    perToken,
    dim,
    sharedDim: (keys.n_shared_experts ?? 0) * dim,
    routing,
  };
  return checkedExperts(experts, 'config.json');
}

function groupsOf(keys: Keys, best: number): RoutingConfig['groups'] {
  const count = keys.n_group ?? 1;
  return count === 1 ? noGroups : { count, keep: keys.topk_group ?? count, best };
}
