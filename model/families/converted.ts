/**
 * Folders written by `tpla convert`: MLA made from a GQA model (model_type tpla_mla). Tensor names and row orders are
 * DeepSeek's; what differs is in the keys: no latent norm, rotary halves, frequencies as a table (a layer may hold its
 * own), a score scale that is given, and possibly no nope part at all.
 */
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import { plainFeatures } from '../../config/model-config.ts';
import { without, type ModelDescription, type Role, type TensorNames, type Tensors } from './description.ts';
import { hubActivation, layerCount, parseKeys, positive, size } from './hub-config.ts';
import { isTied } from './hub-decoder.ts';

const names: TensorNames = {
  embedding: 'model.embed_tokens.weight',
  head: 'lm_head.weight',
  finalNorm: 'model.norm.weight',
  attentionNorm: 'model.layers.{layer}.input_layernorm.weight',
  query: 'model.layers.{layer}.self_attn.q_proj.weight',
  queryBias: 'model.layers.{layer}.self_attn.q_proj.bias',
  latentDown: 'model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight',
  latentDownBias: 'model.layers.{layer}.self_attn.kv_a_proj_with_mqa.bias',
  latentUp: 'model.layers.{layer}.self_attn.kv_b_proj.weight',
  output: 'model.layers.{layer}.self_attn.o_proj.weight',
  outputBias: 'model.layers.{layer}.self_attn.o_proj.bias',
  ropeFrequencies: 'model.layers.{layer}.self_attn.rope_frequencies',
  feedForwardNorm: 'model.layers.{layer}.post_attention_layernorm.weight',
  gate: 'model.layers.{layer}.mlp.gate_proj.weight',
  up: 'model.layers.{layer}.mlp.up_proj.weight',
  down: 'model.layers.{layer}.mlp.down_proj.weight',
};

const biases: readonly Role[] = ['queryBias', 'latentDownBias', 'outputBias'];

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
});

/** @throws ConfigError listing the keys of config.json that are missing, wrong or not supported */
export function describeConverted(config: unknown, tensors: Tensors | undefined): ModelDescription {
  const keys = parseKeys(schema, config, 'config.json');
  if (keys.rope_frequencies.length * 2 !== keys.qk_rope_head_dim)
    throw new ConfigError(
      `config.json: rope_frequencies has ${keys.rope_frequencies.length} entries, expected ${keys.qk_rope_head_dim / 2} = qk_rope_head_dim / 2`,
    );
  const tied = isTied(keys, tensors);
  return {
    config: {
      ...plainFeatures,
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
        scoreSoftcap: 0,
      },
      rope: { frequencies: keys.rope_frequencies, attentionFactor: 1, interleaved: false },
      feedForward: { kind: 'gated', dim: keys.intermediate_size, activation: hubActivation(keys.hidden_act) },
      tiedEmbeddings: tied,
    },
    names: without(names, [...(tied ? (['head'] as const) : []), ...(keys.attention_bias ? [] : biases)]),
    // The source may have had biases on some projections only.
    optional: [...biases, 'ropeFrequencies'],
    neighbourPairs: [],
  };
}
