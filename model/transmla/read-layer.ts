/**
 * Reads what the conversion needs of one attention layer, widened to float64, and refuses models that it cannot convert:
 * those that are MLA already, and those whose queries and keys are normed per head between projection and RoPE (heads
 * cannot be mixed before such a norm). Read next: published.ts.
 */
import { ConfigError } from '../../config/errors.ts';
import type { GqaConfig, ModelConfig } from '../../config/model-config.ts';
import type { Checkpoint, LayerRole } from '../checkpoint.ts';
import { toFloat32 } from '../dequantize.ts';
import { type GqaMaps, type HeadLayout, withBias } from './attention-maps.ts';
import { type Dense, denseFrom } from './dense.ts';

/** @throws ConfigError naming every feature of the model that stands in the way */
export function convertibleAttention(config: ModelConfig): GqaConfig {
  const { architecture, attention } = config;
  if (attention.kind !== 'gqa')
    throw new ConfigError(
      `convert: this ${architecture} model has latent attention already (kv_lora_rank ${attention.latentDim}); run or serve it as it is`,
    );
  const obstacles = [
    attention.headNorms &&
      'norms queries and keys per head and token before RoPE, so that no fixed matrix maps its keys to a latent',
    config.numHeads % attention.numKvHeads !== 0 &&
      `has ${config.numHeads} query heads, no multiple of its ${attention.numKvHeads} KV heads`,
  ].filter((obstacle) => obstacle !== false);
  if (obstacles.length > 0)
    throw new ConfigError(
      `convert: this ${architecture} model ${obstacles.join('; it ')}. Llama, Qwen2, Mistral, Mixtral and Gemma 2 models can be converted; run this one with --scheme gqa`,
    );
  return attention;
}

export function headLayout(config: ModelConfig): HeadLayout {
  const { numKvHeads, headDim } = convertibleAttention(config);
  return { numHeads: config.numHeads, numKvHeads, headDim };
}

export async function readGqaMaps(source: Checkpoint, layer: number): Promise<GqaMaps> {
  const read = async (weight: LayerRole, bias: LayerRole): Promise<Dense> =>
    withBias(await readDense(source, weight, layer), await readVector(source, bias, layer));
  return {
    query: await read('query', 'queryBias'),
    key: await read('key', 'keyBias'),
    value: await read('value', 'valueBias'),
  };
}

/** Bias of the values of near tokens: the source's less the mean value, which the output's bias has. @param meanValue [G d, 1] */
export async function nearValueBias(
  source: Checkpoint,
  layer: number,
  meanValue: Dense | undefined,
): Promise<Float64Array> {
  const bias = await readVector(source, 'valueBias', layer);
  const { numKvHeads, headDim } = headLayout(source.config);
  return Float64Array.from({ length: numKvHeads * headDim }, (_, i) => (bias?.[i] ?? 0) - (meanValue?.data[i] ?? 0));
}

/** W_O with its bias as the last column. [D, H d + 1] */
export async function readOutputMap(source: Checkpoint, layer: number): Promise<Dense> {
  return withBias(await readDense(source, 'output', layer), await readVector(source, 'outputBias', layer));
}

async function readDense(source: Checkpoint, role: LayerRole, layer: number): Promise<Dense> {
  const weight = await source.read(role, layer);
  return denseFrom(weight.rows, weight.cols, toFloat32(weight));
}

async function readVector(source: Checkpoint, role: LayerRole, layer: number): Promise<Float32Array | undefined> {
  return source.shapeOf(role, layer) === undefined ? undefined : toFloat32(await source.read(role, layer));
}
