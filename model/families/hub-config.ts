/**
 * Pieces of a Hugging Face config.json that most families share: checked sizes, rotary embedding in the keys of
 * transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters), activation. All mistakes of a file are reported
 * at once. Sizes are bounded so that a hostile file cannot make us allocate.
 */
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import type { FeedForwardConfig } from '../../config/model-config.ts';
import { yarnMscale, type RopeScaling } from '../rope.ts';

export const size = z
  .number()
  .int()
  .min(1)
  .max(1 << 24);
export const layerCount = z.number().int().min(1).max(4096);
export const positive = z.number().positive();

const ropeSchema = z.object({
  rope_type: z.string().optional(),
  type: z.string().optional(),
  rope_theta: positive.optional(),
  factor: positive.optional(),
  low_freq_factor: positive.optional(),
  high_freq_factor: positive.optional(),
  original_max_position_embeddings: positive.optional(),
  beta_fast: positive.nullish(),
  beta_slow: positive.nullish(),
  attention_factor: positive.nullish(),
  mscale: z.number().nullish(),
  mscale_all_dim: z.number().nullish(),
  truncate: z.boolean().optional(),
  partial_rotary_factor: z.literal(1).optional(),
});
type RopeKeys = z.infer<typeof ropeSchema>;

/** To be spread into a family's schema. */
export const ropeFields = {
  rope_theta: positive.nullish(),
  rope_scaling: ropeSchema.nullish(),
  rope_parameters: ropeSchema.nullish(),
  partial_rotary_factor: z.literal(1).nullish(),
  max_position_embeddings: size,
};

/** @throws ConfigError listing every key that is missing or wrong */
export function parseKeys<T>(schema: z.ZodType<T>, keys: unknown, where: string): T {
  const parsed = schema.safeParse(keys);
  if (parsed.success) return parsed.data;
  const mistakes = parsed.error.issues.map((issue) => {
    const got = issue.path.reduce<unknown>(valueAt, keys);
    return `${issue.path.join('.')}: ${issue.message}${got === undefined ? '' : `, got ${JSON.stringify(got)}`}`;
  });
  throw new ConfigError(`${where}: ${mistakes.join('; ')}`);
}

/** @param defaultTheta where the file has none */
export function hubRope(
  config: z.infer<z.ZodObject<typeof ropeFields>>,
  defaultTheta = 10000,
): { theta: number; scaling: RopeScaling; mscaleAllDim: number } {
  const keys = config.rope_parameters ?? config.rope_scaling ?? {};
  const theta = keys.rope_theta ?? config.rope_theta ?? defaultTheta;
  const scaling = hubScaling(keys, config.max_position_embeddings);
  return { theta, scaling, mscaleAllDim: keys.mscale_all_dim ?? 0 };
}

/** Quantised with 8-bit floats in blocks, or not at all; other methods are refused by name. */
export const quantizationField = {
  quantization_config: z
    .object({ quant_method: z.string(), weight_block_size: z.tuple([size, size]).nullish() })
    .nullish()
    .superRefine((keys, context) => {
      if (keys && keys.quant_method !== 'fp8')
        context.addIssue(`quant_method '${keys.quant_method}' is not supported; fp8 is, or a GGUF file`);
      else if (keys && !keys.weight_block_size)
        context.addIssue('fp8 without weight_block_size (a scale per matrix) is not supported');
    }),
};

export function hubActivation(name: string): FeedForwardConfig['activation'] {
  switch (name) {
    case 'silu':
    case 'swish':
      return 'silu';
    case 'gelu_pytorch_tanh':
      return 'gelu-tanh';
    default:
      throw new ConfigError(`config.json: hidden_act: '${name}' is not supported; silu and gelu_pytorch_tanh are`);
  }
}

function hubScaling(keys: RopeKeys, maxPositions: number): RopeScaling {
  const kind = keys.rope_type ?? keys.type ?? 'default';
  const required = (
    key: 'factor' | 'low_freq_factor' | 'high_freq_factor' | 'original_max_position_embeddings',
  ): number => {
    const value = keys[key];
    if (value === undefined) throw new ConfigError(`config.json: rope scaling '${kind}' needs the key ${key}`);
    return value;
  };
  switch (kind) {
    case 'default':
      return { kind: 'none' };
    case 'linear':
      return { kind: 'linear', factor: required('factor') };
    case 'llama3':
      return {
        kind: 'llama3',
        factor: required('factor'),
        lowFrequencyFactor: required('low_freq_factor'),
        highFrequencyFactor: required('high_freq_factor'),
        originalContext: required('original_max_position_embeddings'),
      };
    case 'yarn': {
      const factor = required('factor');
      return {
        kind: 'yarn',
        factor,
        originalContext: keys.original_max_position_embeddings ?? maxPositions,
        betaFast: keys.beta_fast ?? 32,
        betaSlow: keys.beta_slow ?? 1,
        attentionFactor: yarnAttentionFactor(keys, factor),
        truncate: keys.truncate ?? true,
      };
    }
    default:
      throw new ConfigError(
        `config.json: rope scaling '${kind}' is not supported; default, linear, llama3 and yarn are`,
      );
  }
}

function yarnAttentionFactor(keys: RopeKeys, factor: number): number {
  if (keys.attention_factor) return keys.attention_factor;
  if (keys.mscale && keys.mscale_all_dim)
    return yarnMscale(factor, keys.mscale) / yarnMscale(factor, keys.mscale_all_dim);
  return yarnMscale(factor, 1);
}

function valueAt(container: unknown, key: PropertyKey): unknown {
  if (typeof container !== 'object' || container === null) return undefined;
  return new Map<PropertyKey, unknown>(Object.entries(container)).get(String(key));
}
