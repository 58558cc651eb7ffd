/**
 * GGUF files of architecture deepseek2: DeepSeek-V2, V3, R1 and Kimi-K2, with W_UK and W_UV in two tensors (attn_k_b,
 * attn_v_b) or, in older files, in one (attn_kv_b). Such files keep one of the two yarn mscale numbers: models where
 * they differ cannot be told apart and were not published.
 */
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import { plainFeatures, type MlaConfig, type RoutingConfig } from '../../config/model-config.ts';
import { without, type GgufSource, type ModelDescription, type Role, type TensorNames } from './description.ts';
import { baseFields, baseNames, expertNamesOf, ggufExperts, ggufRope, ownKeys, vocabSizeOf } from './gguf-config.ts';
import { positive, size } from './hub-config.ts';
import { noGroups } from './routing.ts';

const latentNormEps = 1e-6;

const names: TensorNames = {
  ...baseNames,
  queryDown: 'blk.{layer}.attn_q_a.weight',
  queryDownNorm: 'blk.{layer}.attn_q_a_norm.weight',
  queryUp: 'blk.{layer}.attn_q_b.weight',
  latentDown: 'blk.{layer}.attn_kv_a_mqa.weight',
  latentNorm: 'blk.{layer}.attn_kv_a_norm.weight',
  latentUp: 'blk.{layer}.attn_kv_b.weight',
  routerBias: 'blk.{layer}.exp_probs_b.bias',
  sharedGate: 'blk.{layer}.ffn_gate_shexp.weight',
  sharedUp: 'blk.{layer}.ffn_up_shexp.weight',
  sharedDown: 'blk.{layer}.ffn_down_shexp.weight',
};

const parts = { key: 'blk.{layer}.attn_k_b.weight', value: 'blk.{layer}.attn_v_b.weight' };

const schema = z.object({
  ...baseFields,
  'attention.kv_lora_rank': size,
  'attention.q_lora_rank': z.number().int().nonnegative().default(0),
  'attention.key_length': size,
  'attention.value_length': size,
  'attention.key_length_mla': size.optional(),
  'attention.value_length_mla': size.optional(),
  'rope.dimension_count': size,
  leading_dense_block_count: z.number().int().nonnegative().default(0),
  expert_gating_func: z.number().int().default(0),
  expert_weights_norm: z.boolean().default(false),
  expert_weights_scale: positive.default(1),
  expert_group_count: z.number().int().nonnegative().default(0),
  expert_group_used_count: z.number().int().nonnegative().default(0),
});
type Keys = z.infer<typeof schema>;

/** @throws ConfigError listing the metadata that is missing, wrong or not supported */
export function describeGgufDeepseek2(source: GgufSource): ModelDescription {
  const keys = ownKeys(schema, source, 'deepseek2');
  const { tensors } = source;
  const firstLayer = keys.leading_dense_block_count;
  const biased = [...tensors.keys()].some((name) => name.endsWith('.exp_probs_b.bias'));
  const experts = ggufExperts(keys, firstLayer, routingOf(keys, biased), 'deepseek2');
  const tied = !tensors.has('output.weight');
  const apart = tensors.has(parts.key.replace('{layer}', '0'));
  const absent: Role[] = [
    ...(tied ? (['head'] as const) : []),
    ...(keys['attention.q_lora_rank'] === 0
      ? (['queryDown', 'queryDownNorm', 'queryUp'] as const)
      : (['query'] as const)),
    ...(apart ? (['latentUp'] as const) : []),
    ...(experts !== null && experts.layers.every(Boolean) ? (['gate', 'up', 'down'] as const) : []),
    ...(experts === null || !biased ? (['routerBias'] as const) : []),
    ...(experts === null || experts.sharedDim === 0 ? (['sharedGate', 'sharedUp', 'sharedDown'] as const) : []),
  ];
  return {
    config: {
      ...plainFeatures,
      architecture: 'deepseek2',
      hiddenDim: keys.embedding_length,
      numLayers: keys.block_count,
      numHeads: keys['attention.head_count'],
      vocabSize: vocabSizeOf(keys, tensors),
      contextLength: keys.context_length,
      normEps: keys['attention.layer_norm_rms_epsilon'],
      attention: attentionOf(keys),
      rope: { ...ggufRope(keys, keys['rope.dimension_count'], source, 'deepseek2'), interleaved: true },
      feedForward: { kind: 'gated', dim: keys.feed_forward_length, activation: 'silu' },
      experts,
      tiedEmbeddings: tied,
    },
    names: without({ ...names, ...(experts === null ? {} : expertNamesOf(tensors, firstLayer)) }, absent),
    optional: ['outputBias'],
    neighbourPairs: [],
    ...(apart ? { latentParts: parts } : {}),
  };
}

function attentionOf(keys: Keys): MlaConfig {
  const ropeDim = keys['rope.dimension_count'];
  // Files made for absorbed attention keep the width of a cache row under key_length.
  const headDim = keys['attention.key_length_mla'] ?? keys['attention.key_length'];
  const factor = keys['rope.scaling.type'] === 'yarn' ? (keys['rope.scaling.factor'] ?? 1) : 1;
  // The file holds 0.1 * mscale_all_dim.
  const mscale = factor <= 1 ? 1 : keys['rope.scaling.yarn_log_multiplier'] * Math.log(factor) + 1;
  if (headDim <= ropeDim || ropeDim % 2 !== 0)
    throw new ConfigError(
      `metadata deepseek2: heads of ${headDim} numbers of which ${ropeDim} rotate; expected an even number below ${headDim}`,
    );
  return {
    kind: 'mla',
    latentDim: keys['attention.kv_lora_rank'],
    ropeDim,
    nopeDim: headDim - ropeDim,
    valueDim: keys['attention.value_length_mla'] ?? keys['attention.value_length'],
    queryLoraDim: keys['attention.q_lora_rank'] === 0 ? null : keys['attention.q_lora_rank'],
    latentNormEps,
    scoreScale: headDim ** -0.5 * mscale ** 2,
    scoreSoftcap: 0,
  };
}

function routingOf(keys: Keys, biased: boolean): RoutingConfig {
  const count = keys.expert_group_count;
  // 0: files from before the key existed, all of them softmax.
  if (keys.expert_gating_func > 2)
    throw new ConfigError(
      `metadata deepseek2.expert_gating_func: ${keys.expert_gating_func} is not supported; 1 (softmax) and 2 (sigmoid) are`,
    );
  return {
    scoring: keys.expert_gating_func === 2 ? 'sigmoid' : 'softmax',
    biased,
    groups: count <= 1 ? noGroups : { count, keep: keys.expert_group_used_count, best: biased ? 2 : 1 },
    normalize: keys.expert_weights_norm,
    scale: keys.expert_weights_scale,
  };
}
