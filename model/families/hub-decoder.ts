/**
 * What the decoders with grouped-query attention of Hugging Face have in common: keys of config.json, tensor names, and
 * the ModelConfig made of both. A family's file says only in what it differs. Read next: llama.ts, gemma2.ts.
 */
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import { plainFeatures, type GqaConfig, type ModelConfig } from '../../config/model-config.ts';
import { ropeTable } from '../rope.ts';
import { without, type ModelDescription, type Role, type TensorNames, type Tensors } from './description.ts';
import { hubActivation, hubRope, layerCount, positive, quantizationField, ropeFields, size } from './hub-config.ts';

/** To be extended by a family's own keys. */
export const decoderSchema = z.object({
  ...ropeFields,
  ...quantizationField,
  hidden_size: size,
  intermediate_size: size,
  num_hidden_layers: layerCount,
  num_attention_heads: size,
  num_key_value_heads: size.nullish(),
  head_dim: size.nullish(),
  vocab_size: size,
  rms_norm_eps: positive.default(1e-6),
  hidden_act: z.string().default('silu'),
  tie_word_embeddings: z.boolean().default(false),
});
export type DecoderKeys = z.infer<typeof decoderSchema>;

export const windowFields = {
  sliding_window: size.nullish(),
  layer_types: z.array(z.enum(['full_attention', 'sliding_attention'])).nullish(),
};

const decoderNames: TensorNames = {
  embedding: 'model.embed_tokens.weight',
  head: 'lm_head.weight',
  finalNorm: 'model.norm.weight',
  attentionNorm: 'model.layers.{layer}.input_layernorm.weight',
  query: 'model.layers.{layer}.self_attn.q_proj.weight',
  queryBias: 'model.layers.{layer}.self_attn.q_proj.bias',
  queryNorm: 'model.layers.{layer}.self_attn.q_norm.weight',
  key: 'model.layers.{layer}.self_attn.k_proj.weight',
  keyBias: 'model.layers.{layer}.self_attn.k_proj.bias',
  keyNorm: 'model.layers.{layer}.self_attn.k_norm.weight',
  value: 'model.layers.{layer}.self_attn.v_proj.weight',
  valueBias: 'model.layers.{layer}.self_attn.v_proj.bias',
  output: 'model.layers.{layer}.self_attn.o_proj.weight',
  outputBias: 'model.layers.{layer}.self_attn.o_proj.bias',
  feedForwardNorm: 'model.layers.{layer}.post_attention_layernorm.weight',
  gate: 'model.layers.{layer}.mlp.gate_proj.weight',
  up: 'model.layers.{layer}.mlp.up_proj.weight',
  down: 'model.layers.{layer}.mlp.down_proj.weight',
};

/** Experts as Qwen and DeepSeek name them. */
export const expertNames = {
  router: 'model.layers.{layer}.mlp.gate.weight',
  expertGate: 'model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight',
  expertUp: 'model.layers.{layer}.mlp.experts.{expert}.up_proj.weight',
  expertDown: 'model.layers.{layer}.mlp.experts.{expert}.down_proj.weight',
} satisfies TensorNames;

export const allBiases: readonly Role[] = ['queryBias', 'keyBias', 'valueBias', 'outputBias'];

/** In what a family differs from a decoder without features. */
export interface DecoderFeatures {
  readonly attention?: Partial<GqaConfig>;
  readonly model?: Partial<ModelConfig>;
  /** Names that differ or are added. */
  readonly names?: TensorNames;
  /** Biases on projections; none where absent. */
  readonly biases?: readonly Role[];
  readonly defaultTheta?: number;
  readonly gainsMinusOne?: readonly Role[];
}

/** @param tensors undefined: the configuration alone is at hand */
export function describeDecoder(
  architecture: string,
  keys: DecoderKeys,
  tensors: Tensors | undefined,
  features: DecoderFeatures,
): ModelDescription {
  const numHeads = keys.num_attention_heads;
  const headDim = keys.head_dim ?? keys.hidden_size / numHeads;
  const { theta, scaling } = hubRope(keys, features.defaultTheta);
  const tied = isTied(keys, tensors);
  const attention = {
    ...gqa(numHeads, keys.num_key_value_heads ?? numHeads, headDim, 'config.json'),
    ...features.attention,
  };
  const absent: Role[] = [
    ...(tied ? (['head'] as const) : []),
    ...allBiases.filter((role) => features.biases?.includes(role) !== true),
    ...(attention.headNorms ? [] : (['queryNorm', 'keyNorm'] as const)),
    // A model all of whose layers route has no dense weights.
    ...(features.model?.experts?.layers.every(Boolean) === true ? (['gate', 'up', 'down'] as const) : []),
  ];
  return {
    config: {
      ...plainFeatures,
      architecture,
      hiddenDim: keys.hidden_size,
      numLayers: keys.num_hidden_layers,
      numHeads,
      vocabSize: keys.vocab_size,
      contextLength: keys.max_position_embeddings,
      normEps: keys.rms_norm_eps,
      attention,
      rope: { ...ropeTable(theta, headDim, scaling), interleaved: false },
      feedForward: { kind: 'gated', dim: keys.intermediate_size, activation: hubActivation(keys.hidden_act) },
      tiedEmbeddings: tied,
      ...features.model,
    },
    names: without({ ...decoderNames, ...features.names }, absent),
    optional: [],
    neighbourPairs: [],
    gainsMinusOne: features.gainsMinusOne ?? [],
    scaleBlock: keys.quantization_config?.weight_block_size ?? undefined,
  };
}

/** The head is the embedding where the configuration says so, or where the file has no head. */
export function isTied(keys: { readonly tie_word_embeddings: boolean }, tensors: Tensors | undefined): boolean {
  return keys.tie_word_embeddings || (tensors !== undefined && !tensors.has('lm_head.weight'));
}

/**
 * The window of every layer: from layer_types where the file lists them, else where `slides` says so.
 * @param window 0: none
 */
export function windowsOf(
  keys: { readonly num_hidden_layers: number; readonly layer_types?: readonly string[] | null | undefined },
  window: number,
  slides: (layer: number) => boolean,
): number[] {
  const { num_hidden_layers: numLayers, layer_types: types } = keys;
  if (types && types.length !== numLayers)
    throw new ConfigError(
      `config.json: layer_types has ${types.length} entries, expected ${numLayers} = num_hidden_layers`,
    );
  const doesSlide = (layer: number): boolean => (types ? types[layer] === 'sliding_attention' : slides(layer));
  return Array.from({ length: numLayers }, (_, layer) => (doesSlide(layer) ? window : 0));
}

export function gqa(numHeads: number, numKvHeads: number, headDim: number, where: string): GqaConfig {
  if (numHeads % numKvHeads !== 0)
    throw new ConfigError(`${where}: ${numHeads} query heads cannot share ${numKvHeads} KV heads; expected a divisor`);
  if (!Number.isInteger(headDim) || headDim % 2 !== 0)
    throw new ConfigError(`${where}: heads of ${headDim} numbers, expected a whole even number`);
  return { kind: 'gqa', numKvHeads, headDim, scoreScale: headDim ** -0.5, scoreSoftcap: 0, headNorms: false };
}
