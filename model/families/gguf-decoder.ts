/**
 * GGUF files with grouped-query attention: llama (with Mistral and Mixtral, which use its name), qwen2, qwen3, qwen3moe
 * and gemma2. Each says in what it differs from a plain decoder; names and keys are llama.cpp's. Files of llama keep
 * rows of q and k in neighbour-pair order, the others in halves.
 */
import { z } from 'zod';
import { plainFeatures, type GqaConfig, type ModelConfig } from '../../config/model-config.ts';
import { without, type GgufSource, type ModelDescription, type Role, type TensorNames } from './description.ts';
import { baseFields, baseNames, expertNamesOf, ggufExperts, ggufRope, ownKeys, vocabSizeOf } from './gguf-config.ts';
import { positive, size } from './hub-config.ts';
import { allBiases, gqa } from './hub-decoder.ts';
import { softmaxRouting } from './routing.ts';

const names: TensorNames = {
  ...baseNames,
  queryBias: 'blk.{layer}.attn_q.bias',
  queryNorm: 'blk.{layer}.attn_q_norm.weight',
  key: 'blk.{layer}.attn_k.weight',
  keyBias: 'blk.{layer}.attn_k.bias',
  keyNorm: 'blk.{layer}.attn_k_norm.weight',
  value: 'blk.{layer}.attn_v.weight',
  valueBias: 'blk.{layer}.attn_v.bias',
};

const schema = z.object({
  ...baseFields,
  'attention.head_count_kv': size.optional(),
  'attention.key_length': size.optional(),
  'attention.value_length': size.optional(),
  'attention.scale': positive.optional(),
  'attention.sliding_window': z.number().int().nonnegative().default(0),
  attn_logit_softcapping: z.number().nonnegative().default(0),
  final_logit_softcapping: z.number().nonnegative().default(0),
});
type Keys = z.infer<typeof schema>;

interface Features {
  readonly attention?: Partial<GqaConfig>;
  readonly model?: Partial<ModelConfig>;
  readonly names?: TensorNames;
  readonly neighbourPairs?: readonly Role[];
}

/** @throws ConfigError listing the metadata that is missing, wrong or not supported */
export function describeGgufLlama(source: GgufSource): ModelDescription {
  return describe('llama', source, () => ({ neighbourPairs: ['query', 'queryBias', 'key', 'keyBias'] }));
}

/** @throws ConfigError as above */
export function describeGgufQwen2(source: GgufSource): ModelDescription {
  return describe('qwen2', source, () => ({}));
}

/** @throws ConfigError as above */
export function describeGgufQwen3(source: GgufSource): ModelDescription {
  return describe('qwen3', source, () => ({ attention: { headNorms: true } }));
}

/** @throws ConfigError as above */
export function describeGgufQwen3Moe(source: GgufSource): ModelDescription {
  return describe('qwen3moe', source, () => ({ attention: { headNorms: true } }));
}

/** Gains are stored whole here, unlike in the original checkpoint. @throws ConfigError as above */
export function describeGgufGemma2(source: GgufSource): ModelDescription {
  return describe('gemma2', source, (keys, headDim) => ({
    names: {
      attentionPostNorm: 'blk.{layer}.post_attention_norm.weight',
      feedForwardPostNorm: 'blk.{layer}.post_ffw_norm.weight',
    },
    attention: { scoreScale: gemmaScale(keys, headDim), scoreSoftcap: keys.attn_logit_softcapping },
    model: {
      slidingWindows: Array.from({ length: keys.block_count }, (_, layer) =>
        layer % 2 === 0 ? keys['attention.sliding_window'] : 0,
      ),
      postNorms: true,
      embeddingScale: keys.embedding_length ** 0.5,
      logitSoftcap: keys.final_logit_softcapping,
      feedForward: { kind: 'gated', dim: keys.feed_forward_length, activation: 'gelu-tanh' },
    },
  }));
}

/** The format has no key for query_pre_attn_scalar: llama.cpp knows that of the 27B model by its 46 layers. */
function gemmaScale(keys: Keys, headDim: number): number {
  if (keys['attention.scale'] !== undefined) return keys['attention.scale'];
  const scalar = keys.block_count === 46 ? keys.embedding_length / keys['attention.head_count'] : headDim;
  return scalar ** -0.5;
}

function describe(
  architecture: string,
  source: GgufSource,
  featuresOf: (keys: Keys, headDim: number) => Features,
): ModelDescription {
  const keys = ownKeys(schema, source, architecture);
  const { tensors } = source;
  const numHeads = keys['attention.head_count'];
  const headDim = keys['attention.key_length'] ?? keys.embedding_length / numHeads;
  const features = featuresOf(keys, headDim);
  const where = `metadata ${architecture}`;
  const attention = {
    ...gqa(numHeads, keys['attention.head_count_kv'] ?? numHeads, headDim, where),
    ...features.attention,
  };
  const experts = ggufExperts(keys, 0, softmaxRouting({ normalize: true }), architecture);
  const tied = !tensors.has('output.weight');
  const absent: Role[] = [
    ...(tied ? (['head'] as const) : []),
    ...(attention.headNorms ? [] : (['queryNorm', 'keyNorm'] as const)),
    ...(experts === null ? [] : (['gate', 'up', 'down'] as const)),
  ];
  return {
    config: {
      ...plainFeatures,
      architecture,
      hiddenDim: keys.embedding_length,
      numLayers: keys.block_count,
      numHeads,
      vocabSize: vocabSizeOf(keys, tensors),
      contextLength: keys.context_length,
      normEps: keys['attention.layer_norm_rms_epsilon'],
      attention,
      rope: { ...ggufRope(keys, headDim, source, architecture), interleaved: false },
      feedForward: { kind: 'gated', dim: keys.feed_forward_length, activation: 'silu' },
      experts,
      tiedEmbeddings: tied,
      ...features.model,
    },
    names: without({ ...names, ...(experts === null ? {} : expertNamesOf(tensors, 0)), ...features.names }, absent),
    optional: allBiases,
    neighbourPairs: features.neighbourPairs ?? [],
  };
}
