/**
 * Folders written by `tpla convert`: MLA made from a GQA model (model_type tpla_mla). Tensor names and row orders are
 * DeepSeek's, names of norms behind sublayers GLM-4's; what differs is in the keys: no latent norm, rotary halves,
 * frequencies as a table (a layer may hold its own), a score scale that is given, possibly no nope part at all, and the
 * features of the source's family: windows, caps, norms, embedding scale, experts. Read next: transmla/write-converted.ts.
 */
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import type { ExpertsConfig, NearTokens } from '../../config/model-config.ts';
import { without, type ModelDescription, type Role, type TensorNames, type Tensors } from './description.ts';
import { hubActivation, layerCount, parseKeys, positive, size } from './hub-config.ts';
import { expertNames, isTied } from './hub-decoder.ts';
import { checkedExperts } from './routing.ts';

/** Every tensor that a converted checkpoint can have. The writer uses the same table. */
export const convertedNames = {
  embedding: 'model.embed_tokens.weight',
  head: 'lm_head.weight',
  finalNorm: 'model.norm.weight',
  attentionNorm: 'model.layers.{layer}.input_layernorm.weight',
  key: 'model.layers.{layer}.self_attn.k_proj.weight',
  keyBias: 'model.layers.{layer}.self_attn.k_proj.bias',
  value: 'model.layers.{layer}.self_attn.v_proj.weight',
  valueBias: 'model.layers.{layer}.self_attn.v_proj.bias',
  farSlope: 'model.layers.{layer}.self_attn.far_slope',
  query: 'model.layers.{layer}.self_attn.q_proj.weight',
  queryBias: 'model.layers.{layer}.self_attn.q_proj.bias',
  latentDown: 'model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight',
  latentDownBias: 'model.layers.{layer}.self_attn.kv_a_proj_with_mqa.bias',
  latentNorm: 'model.layers.{layer}.self_attn.kv_a_layernorm.weight',
  latentUp: 'model.layers.{layer}.self_attn.kv_b_proj.weight',
  output: 'model.layers.{layer}.self_attn.o_proj.weight',
  outputBias: 'model.layers.{layer}.self_attn.o_proj.bias',
  ropeFrequencies: 'model.layers.{layer}.self_attn.rope_frequencies',
  attentionPostNorm: 'model.layers.{layer}.post_self_attn_layernorm.weight',
  feedForwardNorm: 'model.layers.{layer}.post_attention_layernorm.weight',
  feedForwardPostNorm: 'model.layers.{layer}.post_mlp_layernorm.weight',
  gate: 'model.layers.{layer}.mlp.gate_proj.weight',
  up: 'model.layers.{layer}.mlp.up_proj.weight',
  down: 'model.layers.{layer}.mlp.down_proj.weight',
  ...expertNames,
  routerBias: 'model.layers.{layer}.mlp.gate.e_score_correction_bias',
  sharedGate: 'model.layers.{layer}.mlp.shared_experts.gate_proj.weight',
  sharedUp: 'model.layers.{layer}.mlp.shared_experts.up_proj.weight',
  sharedDown: 'model.layers.{layer}.mlp.shared_experts.down_proj.weight',
} satisfies TensorNames;

const biases: readonly Role[] = ['queryBias', 'latentDownBias', 'outputBias', 'keyBias', 'valueBias'];

const experts = z.strictObject({
  layers: z.array(z.boolean()),
  count: size,
  per_token: size,
  dim: size,
  shared_dim: z.number().int().nonnegative(),
  scoring: z.enum(['softmax', 'sigmoid']),
  biased: z.boolean(),
  groups: z.strictObject({ count: size, keep: size, best: size }),
  normalize: z.boolean(),
  scale: positive,
});

const nearTokens = z.strictObject({
  sinks: z.number().int().nonnegative(),
  window: size,
  num_key_value_heads: size,
  rope_frequencies: z.array(z.number().nonnegative()),
  attention_factor: positive,
});

const cap = z.number().nonnegative().default(0);

const schema = z.object({
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  vocab_size: size,
  max_position_embeddings: size,
  rms_norm_eps: positive,
  hidden_act: z.string(),
  kv_lora_rank: size,
  qk_rope_head_dim: size,
  qk_nope_head_dim: z
    .number()
    .int()
    .min(0)
    .max(1 << 24),
  v_head_dim: size,
  q_lora_rank: z.null(),
  latent_norm: z.literal(false),
  softmax_scale: positive,
  rope_interleave: z.literal(false),
  rope_frequencies: z.array(z.number().nonnegative()),
  tie_word_embeddings: z.boolean(),
  attention_bias: z.boolean(),
  // Features of some families; absent in folders of others, and in those of older versions.
  attn_logit_softcapping: cap,
  final_logit_softcapping: cap,
  embedding_scale: positive.default(1),
  post_norms: z.boolean().default(false),
  sliding_windows: z.array(z.number().int().nonnegative()).default([]),
  experts: experts.nullable().default(null),
  near_tokens: nearTokens.nullable().default(null),
});
type Keys = z.infer<typeof schema>;

/** @throws ConfigError listing the keys of config.json that are missing, wrong or not supported */
export function describeConverted(config: unknown, tensors: Tensors | undefined): ModelDescription {
  const keys = parseKeys(schema, config, 'config.json');
  if (keys.rope_frequencies.length * 2 !== keys.qk_rope_head_dim)
    throw new ConfigError(
      `config.json: rope_frequencies has ${keys.rope_frequencies.length} entries, expected ${keys.qk_rope_head_dim / 2} = qk_rope_head_dim / 2`,
    );
  checkLayers(keys);
  const tied = isTied(keys, tensors);
  return {
    config: {
      architecture: 'tpla_mla',
      hiddenDim: keys.hidden_size,
      numLayers: keys.num_hidden_layers,
      numHeads: keys.num_attention_heads,
      vocabSize: keys.vocab_size,
      contextLength: keys.max_position_embeddings,
      normEps: keys.rms_norm_eps,
      attention: {
        kind: 'mla',
        latentDim: keys.kv_lora_rank,
        ropeDim: keys.qk_rope_head_dim,
        nopeDim: keys.qk_nope_head_dim,
        valueDim: keys.v_head_dim,
        queryLoraDim: null,
        latentNormEps: null,
        scoreScale: keys.softmax_scale,
        scoreSoftcap: keys.attn_logit_softcapping,
        ...nearOf(keys),
      },
      rope: { frequencies: keys.rope_frequencies, attentionFactor: 1, interleaved: false },
      feedForward: { kind: 'gated', dim: keys.intermediate_size, activation: hubActivation(keys.hidden_act) },
      tiedEmbeddings: tied,
      experts: expertsOf(keys),
      slidingWindows: keys.sliding_windows,
      postNorms: keys.post_norms,
      embeddingScale: keys.embedding_scale,
      logitSoftcap: keys.final_logit_softcapping,
    },
    names: without(convertedNames, absentRoles(keys, tied)),
    // The source may have had biases on some projections only.
    optional: [...biases, 'ropeFrequencies', 'farSlope'],
    neighbourPairs: [],
  };
}

/** Roles of experts need no mention: layers that do not route have none. */
function absentRoles(keys: Keys, tied: boolean): Role[] {
  return [
    'latentNorm',
    ...(tied ? (['head'] as const) : []),
    ...(keys.near_tokens === null ? (['key', 'keyBias', 'value', 'valueBias', 'farSlope'] as const) : []),
    ...(keys.attention_bias ? [] : biases),
    ...(keys.post_norms ? [] : (['attentionPostNorm', 'feedForwardPostNorm'] as const)),
    ...(keys.experts?.biased === true ? [] : (['routerBias'] as const)),
    ...((keys.experts?.shared_dim ?? 0) > 0 ? [] : (['sharedGate', 'sharedUp', 'sharedDown'] as const)),
  ];
}

/** @throws ConfigError for heads of another size than the rest of the config says */
function nearOf(keys: Keys): { near?: NearTokens } {
  if (keys.near_tokens === null) return {};
  const { sinks, window, num_key_value_heads: numKvHeads, rope_frequencies: frequencies } = keys.near_tokens;
  const { num_attention_heads: numHeads, qk_nope_head_dim: headDim, v_head_dim: valueDim } = keys;
  if (frequencies.length * 2 !== headDim || valueDim !== headDim)
    throw new ConfigError(
      `config.json: near_tokens has ${frequencies.length} rope_frequencies, expected ${headDim / 2} = qk_nope_head_dim / 2, and v_head_dim is ${valueDim}, expected ${headDim}`,
    );
  if (numHeads % numKvHeads !== 0)
    throw new ConfigError(
      `config.json: near_tokens.num_key_value_heads is ${numKvHeads}, expected a divisor of ${numHeads} = num_attention_heads`,
    );
  return { near: { sinks, window, numKvHeads, frequencies, attentionFactor: keys.near_tokens.attention_factor } };
}

function expertsOf({ experts: keys }: Keys): ExpertsConfig | null {
  if (keys === null) return null;
  const { layers, count, per_token: perToken, dim, shared_dim: sharedDim, ...routing } = keys;
  return checkedExperts({ layers, count, perToken, dim, sharedDim, routing }, 'config.json');
}

/** @throws ConfigError for lists by layer of another length than the model has layers */
function checkLayers({ num_hidden_layers: numLayers, sliding_windows: windows, experts: routed }: Keys): void {
  const lists = { sliding_windows: windows.length || numLayers, 'experts.layers': routed?.layers.length ?? numLayers };
  for (const [key, length] of Object.entries(lists))
    if (length !== numLayers)
      throw new ConfigError(`config.json: ${key} has ${length} entries, expected ${numLayers} = num_hidden_layers`);
}
