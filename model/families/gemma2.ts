/**
 * Gemma 2: gains stored minus 1, four norms per layer, scaled embedding, soft-capped scores and logits, every other
 * layer (from the first) with a sliding window, tied head, GELU.
 */
import { z } from 'zod';
import type { ModelDescription, TensorNames, Tensors } from './description.ts';
import { hubActivation, parseKeys, positive, size } from './hub-config.ts';
import { allBiases, decoderSchema, describeDecoder, windowFields, windowsOf } from './hub-decoder.ts';

const names: TensorNames = {
  attentionPostNorm: 'model.layers.{layer}.post_attention_layernorm.weight',
  feedForwardNorm: 'model.layers.{layer}.pre_feedforward_layernorm.weight',
  feedForwardPostNorm: 'model.layers.{layer}.post_feedforward_layernorm.weight',
};

const schema = decoderSchema.extend({
  ...windowFields,
  sliding_window: size.nullish().default(4096),
  head_dim: size.default(256),
  hidden_activation: z.string().nullish(),
  query_pre_attn_scalar: positive.default(256),
  attn_logit_softcapping: positive.nullish(),
  final_logit_softcapping: positive.nullish(),
  attention_bias: z.boolean().default(false),
  tie_word_embeddings: z.boolean().default(true),
});

/** @throws ConfigError listing the keys of config.json that are missing, wrong or not supported */
export function describeHubGemma2(config: unknown, tensors: Tensors | undefined): ModelDescription {
  const keys = parseKeys(schema, config, 'config.json');
  const activation = hubActivation(keys.hidden_activation ?? 'gelu_pytorch_tanh');
  return describeDecoder('gemma2', keys, tensors, {
    names,
    biases: keys.attention_bias ? allBiases : [],
    gainsMinusOne: ['attentionNorm', 'attentionPostNorm', 'feedForwardNorm', 'feedForwardPostNorm', 'finalNorm'],
    attention: {
      scoreScale: keys.query_pre_attn_scalar ** -0.5,
      scoreSoftcap: keys.attn_logit_softcapping ?? 0,
    },
    model: {
      slidingWindows: windowsOf(keys, keys.sliding_window ?? 0, (layer) => layer % 2 === 0),
      postNorms: true,
      embeddingScale: keys.hidden_size ** 0.5,
      logitSoftcap: keys.final_logit_softcapping ?? 0,
      feedForward: { kind: 'gated', dim: keys.intermediate_size, activation },
    },
  });
}
