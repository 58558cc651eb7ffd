/**
 * Pieces of GGUF metadata that families share: the keys under an architecture's prefix, rotary scaling, experts, and
 * the tensor names that llama.cpp gives every architecture.
 */
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import type { ExpertsConfig, RoutingConfig } from '../../config/model-config.ts';
import { ropeTable, yarnMscale, type RopeScaling, type RopeTable } from '../rope.ts';
import type { GgufSource, TensorNames, Tensors } from './description.ts';
import { layerCount, parseKeys, positive, size } from './hub-config.ts';
import { checkedExperts } from './routing.ts';

export const baseNames: TensorNames = {
  embedding: 'token_embd.weight',
  head: 'output.weight',
  finalNorm: 'output_norm.weight',
  attentionNorm: 'blk.{layer}.attn_norm.weight',
  query: 'blk.{layer}.attn_q.weight',
  output: 'blk.{layer}.attn_output.weight',
  outputBias: 'blk.{layer}.attn_output.bias',
  feedForwardNorm: 'blk.{layer}.ffn_norm.weight',
  gate: 'blk.{layer}.ffn_gate.weight',
  up: 'blk.{layer}.ffn_up.weight',
  down: 'blk.{layer}.ffn_down.weight',
};

export const baseFields = {
  context_length: size,
  embedding_length: size,
  block_count: layerCount,
  feed_forward_length: size,
  vocab_size: size.optional(),
  'attention.head_count': size,
  'attention.layer_norm_rms_epsilon': positive,
  'rope.dimension_count': size.optional(),
  'rope.freq_base': positive.default(10000),
  'rope.scaling.type': z.string().default('none'),
  'rope.scaling.factor': positive.optional(),
  'rope.scaling.attn_factor': positive.default(1),
  'rope.scaling.original_context_length': positive.optional(),
  'rope.scaling.yarn_beta_fast': positive.default(32),
  'rope.scaling.yarn_beta_slow': positive.default(1),
  'rope.scaling.yarn_log_multiplier': z.number().nonnegative().default(0),
  expert_count: z.number().int().nonnegative().max(65536).default(0),
  expert_used_count: z.number().int().nonnegative().max(65536).default(0),
  expert_feed_forward_length: size.optional(),
  expert_shared_count: z.number().int().nonnegative().max(65536).default(0),
};
export type BaseKeys = z.infer<z.ZodObject<typeof baseFields>>;

/** The keys `ARCHITECTURE.*`, without that prefix. @throws ConfigError listing those that are missing or wrong */
export function ownKeys<T>(schema: z.ZodType<T>, { metadata }: GgufSource, architecture: string): T {
  const prefix = `${architecture}.`;
  const own = [...metadata]
    .filter(([key]) => key.startsWith(prefix))
    .map(([key, value]) => [key.slice(prefix.length), value]);
  return parseKeys(schema, Object.fromEntries(own), `metadata ${architecture}`);
}

/** @param dim width of the rotated part */
export function ggufRope(keys: BaseKeys, dim: number, source: GgufSource, architecture: string): RopeTable {
  const rotated = keys['rope.dimension_count'] ?? dim;
  if (rotated !== dim)
    throw new ConfigError(
      `metadata ${architecture}.rope.dimension_count: ${rotated} of ${dim} head dimensions rotate; only whole heads are supported`,
    );
  const divisors = source.ropeDivisors;
  if (divisors !== undefined && divisors.length * 2 !== dim)
    throw new ConfigError(
      `weights: rope_freqs.weight has ${divisors.length} values, expected ${dim / 2} = half a head`,
    );
  const scaling = divisors === undefined ? ggufScaling(keys, architecture) : ({ kind: 'divisors', divisors } as const);
  return ropeTable(keys['rope.freq_base'], dim, scaling);
}

function ggufScaling(keys: BaseKeys, architecture: string): RopeScaling {
  const kind = keys['rope.scaling.type'];
  const factor = keys['rope.scaling.factor'];
  const where = `metadata ${architecture}.rope.scaling`;
  if (kind === 'none') return { kind: 'none' };
  if (factor === undefined) throw new ConfigError(`${where}: type '${kind}' needs ${architecture}.rope.scaling.factor`);
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
        // GGUF stores what multiplies yarn's own factor; with a multiplier of its own (DeepSeek) the two cancel.
        attentionFactor:
          keys['rope.scaling.attn_factor'] *
          (keys['rope.scaling.yarn_log_multiplier'] === 0 ? yarnMscale(factor, 1) : 1),
        truncate: true,
      };
    default:
      throw new ConfigError(`${where}.type: '${kind}' is not supported; none, linear and yarn are`);
  }
}

/** Experts in the current form (one tensor for all) or the older one (a tensor each). */
export function expertNamesOf(tensors: Tensors, firstLayer: number): TensorNames {
  const stacked = tensors.has(`blk.${firstLayer}.ffn_gate_exps.weight`);
  const name = (part: string): string =>
    stacked ? `blk.{layer}.ffn_${part}_exps.weight` : `blk.{layer}.ffn_${part}.{expert}.weight`;
  return {
    router: 'blk.{layer}.ffn_gate_inp.weight',
    expertGate: name('gate'),
    expertUp: name('up'),
    expertDown: name('down'),
  };
}

/** null where the file has none. @param firstLayer the layers before it are dense */
export function ggufExperts(
  keys: BaseKeys,
  firstLayer: number,
  routing: RoutingConfig,
  architecture: string,
): ExpertsConfig | null {
  if (keys.expert_count === 0) return null;
  const dim = keys.expert_feed_forward_length ?? keys.feed_forward_length;
  const experts: ExpertsConfig = {
    layers: Array.from({ length: keys.block_count }, (_, layer) => layer >= firstLayer),
    count: keys.expert_count,
    perToken: keys.expert_used_count,
    dim,
    sharedDim: keys.expert_shared_count * dim,
    routing,
  };
  if (experts.perToken === 0)
    throw new ConfigError(`metadata ${architecture}.expert_used_count is missing; expected 1 to ${experts.count}`);
  return checkedExperts(experts, `metadata ${architecture}`);
}

/** The vocabulary's size, from the embedding where the metadata does not say. */
export function vocabSizeOf(keys: BaseKeys, tensors: Tensors): number {
  return keys.vocab_size ?? tensors.get('token_embd.weight')?.shape[0] ?? 1;
}
