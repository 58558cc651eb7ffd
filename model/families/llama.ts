/**
 * Llama: grouped-query attention with rotary halves, gated SiLU feed-forward. From config.json (transformers 4 and 5)
 * and from GGUF metadata (architecture `llama`). Refuses feed-forward biases and the expert variant that GGUF files of
 * Mixtral hide under the same architecture name.
 */
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import type { GqaConfig } from '../../config/model-config.ts';
import { ropeTable, yarnMscale, type RopeScaling } from '../rope.ts';
import {
  without,
  type GgufSource,
  type ModelDescription,
  type Role,
  type TensorNames,
  type Tensors,
} from './description.ts';
import { hubActivation, hubRope, layerCount, parseKeys, positive, ropeFields, size } from './hub-config.ts';

const hubNames: TensorNames = {
  embedding: 'model.embed_tokens.weight',
  head: 'lm_head.weight',
  finalNorm: 'model.norm.weight',
  attentionNorm: 'model.layers.{layer}.input_layernorm.weight',
  query: 'model.layers.{layer}.self_attn.q_proj.weight',
  queryBias: 'model.layers.{layer}.self_attn.q_proj.bias',
  key: 'model.layers.{layer}.self_attn.k_proj.weight',
  keyBias: 'model.layers.{layer}.self_attn.k_proj.bias',
  value: 'model.layers.{layer}.self_attn.v_proj.weight',
  valueBias: 'model.layers.{layer}.self_attn.v_proj.bias',
  output: 'model.layers.{layer}.self_attn.o_proj.weight',
  outputBias: 'model.layers.{layer}.self_attn.o_proj.bias',
  feedForwardNorm: 'model.layers.{layer}.post_attention_layernorm.weight',
  gate: 'model.layers.{layer}.mlp.gate_proj.weight',
  up: 'model.layers.{layer}.mlp.up_proj.weight',
  down: 'model.layers.{layer}.mlp.down_proj.weight',
};

const ggufNames: TensorNames = {
  embedding: 'token_embd.weight',
  head: 'output.weight',
  finalNorm: 'output_norm.weight',
  attentionNorm: 'blk.{layer}.attn_norm.weight',
  query: 'blk.{layer}.attn_q.weight',
  queryBias: 'blk.{layer}.attn_q.bias',
  key: 'blk.{layer}.attn_k.weight',
  keyBias: 'blk.{layer}.attn_k.bias',
  value: 'blk.{layer}.attn_v.weight',
  valueBias: 'blk.{layer}.attn_v.bias',
  output: 'blk.{layer}.attn_output.weight',
  outputBias: 'blk.{layer}.attn_output.bias',
  feedForwardNorm: 'blk.{layer}.ffn_norm.weight',
  gate: 'blk.{layer}.ffn_gate.weight',
  up: 'blk.{layer}.ffn_up.weight',
  down: 'blk.{layer}.ffn_down.weight',
};

const biases: readonly Role[] = ['queryBias', 'keyBias', 'valueBias', 'outputBias'];

const hubSchema = z.object({
  ...ropeFields,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  head_dim: size.nullish(),
  vocab_size: size,
  rms_norm_eps: positive.default(1e-6),
  hidden_act: z.string().default('silu'),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.literal(false).default(false),
  tie_word_embeddings: z.boolean().default(false),
  quantization_config: z.null().optional(),
});

/** @throws ConfigError listing the keys of config.json that are missing, wrong or not supported */
export function describeHubLlama(config: unknown, tensors: Tensors): ModelDescription {
  const keys = parseKeys(hubSchema, config, 'config.json');
  const numHeads = keys.num_attention_heads;
  const headDim = keys.head_dim ?? keys.hidden_size / numHeads;
  const { theta, scaling } = hubRope(keys);
  const tied = keys.tie_word_embeddings || !tensors.has('lm_head.weight');
  return {
    config: {
      architecture: 'llama',
      hiddenDim: keys.hidden_size,
      numLayers: keys.num_hidden_layers,
      numHeads,
      vocabSize: keys.vocab_size,
      contextLength: keys.max_position_embeddings,
      normEps: keys.rms_norm_eps,
      attention: gqa(numHeads, keys.num_key_value_heads ?? numHeads, headDim, 'config.json'),
      rope: { ...ropeTable(theta, headDim, scaling), interleaved: false },
      feedForward: { kind: 'gated', dim: keys.intermediate_size, activation: hubActivation(keys.hidden_act) },
      tiedEmbeddings: tied,
    },
    names: without(hubNames, [...(tied ? (['head'] as const) : []), ...(keys.attention_bias ? [] : biases)]),
    optional: [],
    neighbourPairs: [],
  };
}

const ggufSchema = z.object({
  context_length: size,
  embedding_length: size,
  block_count: layerCount,
  feed_forward_length: size,
  vocab_size: size.optional(),
  expert_count: z.literal(0).optional(),
  'attention.head_count': size,
  'attention.head_count_kv': size.optional(),
  'attention.key_length': size.optional(),
  'attention.layer_norm_rms_epsilon': positive,
  'rope.dimension_count': size.optional(),
  'rope.freq_base': positive.default(10000),
  'rope.scaling.type': z.string().default('none'),
  'rope.scaling.factor': positive.optional(),
  'rope.scaling.attn_factor': positive.default(1),
  'rope.scaling.original_context_length': positive.optional(),
  'rope.scaling.yarn_beta_fast': positive.default(32),
  'rope.scaling.yarn_beta_slow': positive.default(1),
});
type GgufKeys = z.infer<typeof ggufSchema>;

/** @throws ConfigError listing the metadata that is missing, wrong or not supported */
export function describeGgufLlama({ metadata, tensors, ropeDivisors }: GgufSource): ModelDescription {
  const prefix = 'llama.';
  const own = [...metadata]
    .filter(([key]) => key.startsWith(prefix))
    .map(([key, value]) => [key.slice(prefix.length), value]);
  const keys = parseKeys(ggufSchema, Object.fromEntries(own), 'metadata llama');
  const numHeads = keys['attention.head_count'];
  const headDim = keys['attention.key_length'] ?? keys.embedding_length / numHeads;
  const attention = gqa(numHeads, keys['attention.head_count_kv'] ?? numHeads, headDim, 'metadata llama');
  if ((keys['rope.dimension_count'] ?? headDim) !== headDim)
    throw new ConfigError(
      `metadata llama.rope.dimension_count: ${keys['rope.dimension_count']} of ${headDim} head dimensions rotate; only whole heads are supported`,
    );
  if (ropeDivisors !== undefined && ropeDivisors.length * 2 !== headDim)
    throw new ConfigError(
      `weights: rope_freqs.weight has ${ropeDivisors.length} values, expected ${headDim / 2} = half a head`,
    );
  const tied = !tensors.has('output.weight');
  const scaling =
    ropeDivisors === undefined ? ggufScaling(keys) : ({ kind: 'divisors', divisors: ropeDivisors } as const);
  return {
    config: {
      architecture: 'llama',
      hiddenDim: keys.embedding_length,
      numLayers: keys.block_count,
      numHeads,
      vocabSize: keys.vocab_size ?? tensors.get('token_embd.weight')?.shape[0] ?? 1,
      contextLength: keys.context_length,
      normEps: keys['attention.layer_norm_rms_epsilon'],
      attention,
      rope: { ...ropeTable(keys['rope.freq_base'], headDim, scaling), interleaved: false },
      feedForward: { kind: 'gated', dim: keys.feed_forward_length, activation: 'silu' },
      tiedEmbeddings: tied,
    },
    names: tied ? without(ggufNames, ['head']) : ggufNames,
    optional: biases,
    neighbourPairs: ['query', 'queryBias', 'key', 'keyBias'],
  };
}

function ggufScaling(keys: GgufKeys): RopeScaling {
  const kind = keys['rope.scaling.type'];
  const factor = keys['rope.scaling.factor'];
  if (kind === 'none') return { kind: 'none' };
  if (factor === undefined)
    throw new ConfigError(`metadata llama.rope.scaling: type '${kind}' needs llama.rope.scaling.factor`);
  switch (kind) {
    case 'linear':
      return { kind: 'linear', factor };
    case 'yarn':
      return {
        kind: 'yarn',
        factor,
        originalContext: keys['rope.scaling.original_context_length'] ?? keys.context_length,
        betaFast: keys['rope.scaling.yarn_beta_fast'],
        betaSlow: keys['rope.scaling.yarn_beta_slow'],
        // GGUF stores what multiplies yarn's own factor.
        attentionFactor: keys['rope.scaling.attn_factor'] * yarnMscale(factor, 1),
        truncate: true,
      };
    default:
      throw new ConfigError(`metadata llama.rope.scaling.type: '${kind}' is not supported; none, linear and yarn are`);
  }
}

function gqa(numHeads: number, numKvHeads: number, headDim: number, where: string): GqaConfig {
  if (numHeads % numKvHeads !== 0)
    throw new ConfigError(`${where}: ${numHeads} query heads cannot share ${numKvHeads} KV heads; expected a divisor`);
  if (!Number.isInteger(headDim) || headDim % 2 !== 0)
    throw new ConfigError(`${where}: heads of ${headDim} numbers, expected a whole even number`);
  return { kind: 'gqa', numKvHeads, headDim, scoreScale: headDim ** -0.5 };
}
