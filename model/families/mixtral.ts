/** Mixtral: mistral whose feed-forward is a mixture of experts in every layer, softmax routing, weights renormalised. */
import { z } from 'zod';
import type { ModelDescription, TensorNames, Tensors } from './description.ts';
import { parseKeys, size } from './hub-config.ts';
import { decoderSchema, describeDecoder, windowFields, windowsOf } from './hub-decoder.ts';
import { softmaxRouting } from './routing.ts';

const names: TensorNames = {
  router: 'model.layers.{layer}.block_sparse_moe.gate.weight',
  expertGate: 'model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight',
  expertUp: 'model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight',
  expertDown: 'model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight',
};

const schema = decoderSchema.extend({
  ...windowFields,
  rms_norm_eps: z.number().positive().default(1e-5),
  num_local_experts: size.default(8),
  num_experts_per_tok: size.default(2),
});

/** @throws ConfigError listing the keys of config.json that are missing, wrong or not supported */
export function describeHubMixtral(config: unknown, tensors: Tensors | undefined): ModelDescription {
  const keys = parseKeys(schema, config, 'config.json');
  return describeDecoder('mixtral', keys, tensors, {
    defaultTheta: 1e6,
    names,
    model: {
      slidingWindows: windowsOf(keys, keys.sliding_window ?? 0, () => true),
      experts: {
        layers: new Array<boolean>(keys.num_hidden_layers).fill(true),
        count: keys.num_local_experts,
        perToken: keys.num_experts_per_tok,
        dim: keys.intermediate_size,
        sharedDim: 0,
        routing: softmaxRouting({ normalize: true }),
      },
    },
  });
}
