/**
 * Qwen2 (biases on queries, keys and values), Qwen3 (queries and keys normed per head) and Qwen3-MoE (Qwen3 with
 * softmax-routed experts). A sliding window counts only where use_sliding_window says so.
 */
import { z } from 'zod';
import type { ExpertsConfig } from '../../config/model-config.ts';
import type { ModelDescription, Tensors } from './description.ts';
import { parseKeys, size } from './hub-config.ts';
import { allBiases, decoderSchema, describeDecoder, expertNames, windowFields, windowsOf } from './hub-decoder.ts';
import { checkedExperts, softmaxRouting } from './routing.ts';

const schema = decoderSchema.extend({
  ...windowFields,
  use_sliding_window: z.boolean().default(false),
  max_window_layers: z.number().int().nonnegative().default(28),
});

const qwen3Schema = schema.extend({ attention_bias: z.boolean().default(false) });

const expertsSchema = qwen3Schema.extend({
  num_experts: size.default(128),
  num_experts_per_tok: size.default(8),
  moe_intermediate_size: size.default(768),
  norm_topk_prob: z.boolean().default(false),
  decoder_sparse_step: size.default(1),
  mlp_only_layers: z.array(z.number().int().nonnegative()).nullish(),
});

type WindowKeys = z.infer<typeof schema>;

/** @throws ConfigError listing the keys of config.json that are missing, wrong or not supported */
export function describeHubQwen2(config: unknown, tensors: Tensors | undefined): ModelDescription {
  const keys = parseKeys(schema, config, 'config.json');
  return describeDecoder('qwen2', keys, tensors, {
    biases: ['queryBias', 'keyBias', 'valueBias'],
    model: { slidingWindows: laterWindows(keys) },
  });
}

/** @throws ConfigError as above */
export function describeHubQwen3(config: unknown, tensors: Tensors | undefined): ModelDescription {
  const keys = parseKeys(qwen3Schema, config, 'config.json');
  return describeDecoder('qwen3', keys, tensors, {
    biases: keys.attention_bias ? allBiases : [],
    attention: { headNorms: true },
    model: { slidingWindows: laterWindows(keys) },
  });
}

/** @throws ConfigError as above */
export function describeHubQwen3Moe(config: unknown, tensors: Tensors | undefined): ModelDescription {
  const keys = parseKeys(expertsSchema, config, 'config.json');
  return describeDecoder('qwen3_moe', keys, tensors, {
    biases: keys.attention_bias ? allBiases : [],
    attention: { headNorms: true },
    names: expertNames,
    model: { slidingWindows: windowsOf(keys, windowOf(keys), () => true), experts: expertsOf(keys) },
  });
}

function expertsOf(keys: z.infer<typeof expertsSchema>): ExpertsConfig {
  const isDense = (layer: number): boolean =>
    keys.mlp_only_layers?.includes(layer) === true || (layer + 1) % keys.decoder_sparse_step !== 0;
  const experts: ExpertsConfig = {
    layers: Array.from({ length: keys.num_hidden_layers }, (_, layer) => !isDense(layer)),
    count: keys.num_experts,
    perToken: keys.num_experts_per_tok,
    dim: keys.moe_intermediate_size,
    sharedDim: 0,
    routing: softmaxRouting({ normalize: keys.norm_topk_prob }),
  };
  return checkedExperts(experts, 'config.json');
}

function windowOf(keys: WindowKeys): number {
  return keys.use_sliding_window ? (keys.sliding_window ?? 0) : 0;
}

/** The first max_window_layers layers attend to everything. */
function laterWindows(keys: WindowKeys): number[] {
  return windowsOf(keys, windowOf(keys), (layer) => layer >= keys.max_window_layers);
}
