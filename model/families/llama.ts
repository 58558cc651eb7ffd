/**
 * Llama 2 and 3 in config.json of transformers 4 and 5: grouped-query attention with rotary halves, gated SiLU
 * feed-forward, biases on all projections of attention where the file asks for them. Refuses feed-forward biases.
 */
import { z } from 'zod';
import type { ModelDescription, Tensors } from './description.ts';
import { parseKeys } from './hub-config.ts';
import { allBiases, decoderSchema, describeDecoder } from './hub-decoder.ts';

const schema = decoderSchema.extend({
  attention_bias: z.boolean().default(false),
  mlp_bias: z.literal(false).default(false),
});

/** @throws ConfigError listing the keys of config.json that are missing, wrong or not supported */
export function describeHubLlama(config: unknown, tensors: Tensors | undefined): ModelDescription {
  const keys = parseKeys(schema, config, 'config.json');
  return describeDecoder('llama', keys, tensors, { biases: keys.attention_bias ? allBiases : [] });
}
