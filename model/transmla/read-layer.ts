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

/** @throws ConfigError for a model that has no GQA attention */
export function convertibleAttention(config: ModelConfig): GqaConfig {
  if (config.attention.kind !== 'gqa')
    throw new ConfigError(
      `convert: this ${config.architecture} model has latent attention already (kv_lora_rank ${config.attention.latentDim}); run or serve it as it is`,
    );
  refuseFeatures(config);
  return config.attention;
}

/** What a converted folder cannot record would be lost without a word. */
function refuseFeatures(config: ModelConfig): void {
  const attention = config.attention;
  const features = [
    attention.kind === 'gqa' && attention.headNorms ? 'norms on queries and keys' : '',
    config.slidingWindows.some((window) => window > 0) ? 'a sliding window' : '',
    attention.scoreSoftcap > 0 || config.logitSoftcap > 0 ? 'soft-capped scores' : '',
    config.postNorms ? 'norms behind attention and feed-forward' : '',
    config.experts === null ? '' : 'routed experts',
  ].filter((feature) => feature !== '');
  if (features.length > 0)
    throw new ConfigError(
      `convert: this ${config.architecture} model has ${features.join(', ')}, which the conversion does not support; run it with --scheme gqa`,
    );
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
