/**
 * Writes a converted model into a folder, as Hugging Face lays one out: config.json (model_type tpla_mla),
 * model.safetensors with DeepSeek's tensor names, and tpla_rotation.safetensors with the latents' principal axes. The
 * same layers give the same bytes. Tokenizer files and the report are the caller's. The reader of config and weights is
 * model/families/converted.ts.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { invariant } from '../../config/errors.ts';
import type { ModelConfig } from '../../config/model-config.ts';
import type { ExactTokens } from '../../config/shard-plan.ts';
import type { Checkpoint } from '../checkpoint.ts';
import { type TensorSource, writeSafetensors } from '../safetensors.ts';
import { type MlaMaps, splitBias } from './attention-maps.ts';
import type { Dense } from './dense.ts';
import {
  encodeFloats,
  encodeMatrix,
  floatTypeOf,
  type FloatType,
  type MatrixType,
  storedType,
} from './encode-floats.ts';
import type { LatentRotation } from './latent-rotation.ts';
import { portableConfig, type PortableMaps } from './portable.ts';
import { convertibleAttention } from './read-layer.ts';
import { tensorName, untouchedTensors, type UntouchedType } from './untouched-tensors.ts';

/** One converted attention layer in the bytes it will have on disk. */
export interface EncodedLayer {
  readonly ropeDim: number;
  readonly nopeDim: number;
  readonly latentDim: number;
  readonly frequencies: readonly number[]; // [p / 2]
  readonly hasBias: boolean;
  readonly replacesOutput: boolean;
  readonly tensors: readonly TensorSource[];
  readonly rotation: readonly TensorSource[];
}

/** Types of the matrices that the conversion made and of those that it left alone, and for whose code they are. */
export interface WrittenForm {
  readonly converted: MatrixType;
  readonly untouched: UntouchedType;
  /** As portable.ts says, whose maps the layers then have. */
  readonly portable: boolean;
  /** First and last tokens that keep the source's keys and values; null: none. */
  readonly near: ExactTokens | null;
}

/** How a layer is encoded, and what it has beside its maps. */
export interface LayerForm {
  readonly dtype: MatrixType;
  /** Undefined: the checkpoint is only measured, not served. */
  readonly rotation?: LatentRotation | undefined;
  /** Replaces the source's o_proj: last column the bias. [D, H d + 1] */
  readonly output?: Dense | undefined;
  /** Bias of the values of near tokens; undefined: the layer has none. [G d] */
  readonly nearValueBias?: Float64Array | undefined;
  /** What scores by latents lack beside those of near tokens; written where it is not zero. [H n] */
  readonly farSlope?: Float64Array | undefined;
}

/**
 * @throws ConfigError when a value does not fit `dtype`
 */
export function encodeLayer(
  layer: number,
  maps: MlaMaps | PortableMaps,
  { dtype, rotation, output, nearValueBias, farSlope }: LayerForm,
): EncodedLayer {
  const tensors: TensorSource[] = [];
  const isPortable = 'latentNorm' in maps;
  if (isPortable) tensors.push(tensor(tensorName('latentNorm', layer), [maps.latentDim], maps.latentNorm.data, 'f32'));
  const add = (role: 'query' | 'latentDown' | 'output', map: Dense): boolean => {
    const { weight, bias } = splitBias(map);
    tensors.push(matrix(tensorName(role, layer), weight, dtype));
    const written = bias ?? (isPortable && role !== 'query' ? new Float64Array(weight.rows) : undefined);
    if (written !== undefined) tensors.push(tensor(tensorName(biasOf[role], layer), [weight.rows], written, 'f32'));
    return written !== undefined;
  };
  const biased = [add('query', maps.query), add('latentDown', maps.latentDown)];
  if (output !== undefined) biased.push(add('output', output));
  if (nearValueBias !== undefined)
    tensors.push(tensor(tensorName('valueBias', layer), [nearValueBias.length], nearValueBias, 'f32'));
  if (farSlope?.some((value) => value !== 0))
    tensors.push(tensor(tensorName('farSlope', layer), [farSlope.length], farSlope, 'f32'));
  const { latentUp, latentDim } = maps;
  // A rank cuts W_UK and W_UV out of it, in any column.
  tensors.push(matrix(tensorName('latentUp', layer), latentUp, floatTypeOf(dtype)));
  return {
    ropeDim: maps.ropeDim,
    nopeDim: maps.nopeDim,
    latentDim,
    frequencies: maps.frequencies,
    hasBias: biased.includes(true),
    replacesOutput: output !== undefined,
    tensors,
    rotation:
      rotation === undefined
        ? []
        : [
            tensor(`layers.${layer}.pca`, [latentDim, latentDim], rotation.vectors.data, 'f32'),
            tensor(`layers.${layer}.energy`, [latentDim], rotation.energy, 'f32'),
          ],
  };
}

/**
 * @param folder an existing, empty folder
 * @param conversion what the config records about the conversion, under `tpla_conversion`
 */
export async function writeConverted(
  source: Checkpoint,
  layers: readonly EncodedLayer[],
  folder: string,
  form: WrittenForm,
  conversion: Readonly<Record<string, unknown>>,
): Promise<void> {
  const [first] = layers;
  invariant(first !== undefined && layers.length === source.config.numLayers, `converted ${layers.length} layers`);
  const tensors = layers.flatMap((layer) => layer.tensors);
  // A table of its own goes beside every layer as soon as one differs; the config holds the first layer's.
  if (
    !form.portable &&
    layers.some((layer) => layer.frequencies.some((frequency, i) => frequency !== first.frequencies[i]))
  ) {
    layers.forEach(({ frequencies }, layer) =>
      tensors.push(
        tensor(tensorName('ropeFrequencies', layer), [frequencies.length], Float64Array.from(frequencies), 'f32'),
      ),
    );
  }
  const replaced = layers.map((layer) => layer.replacesOutput);
  const untouched = untouchedTensors(source, replaced, form.untouched, form.near !== null);
  const hasBias = layers.some((layer) => layer.hasBias) || untouched.some(({ name }) => name.endsWith('proj.bias'));
  const config = {
    ...(form.portable
      ? { ...sharedConfig(source.config, first), ...portableConfig(source.config, first.ropeDim) }
      : { ...configOf(source.config, first, hasBias), ...nearConfig(source.config, form.near) }),
    torch_dtype: dtypeNames[floatTypeOf(form.converted)],
    tpla_conversion: conversion,
  };
  const metadata = { format: 'pt' };
  await writeSafetensors(join(folder, 'model.safetensors'), [...tensors, ...untouched], metadata);
  // Principal axes of a latent that is normed would be others.
  if (!form.portable)
    await writeSafetensors(
      join(folder, 'tpla_rotation.safetensors'),
      layers.flatMap((layer) => layer.rotation),
      metadata,
    );
  await writeFile(join(folder, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
}

const dtypeNames: Record<FloatType, string> = { f16: 'float16', bf16: 'bfloat16', f32: 'float32' };

/** Keys as DeepSeek's config has them where it has one. */
function configOf(model: ModelConfig, layer: EncodedLayer, hasBias: boolean): Record<string, unknown> {
  const { scoreScale, scoreSoftcap } = convertibleAttention(model);
  return {
    architectures: ['TplaForCausalLM'],
    model_type: 'tpla_mla',
    ...sharedConfig(model, layer),
    latent_norm: false,
    softmax_scale: scoreScale,
    rope_interleave: false,
    rope_frequencies: layer.frequencies,
    attention_bias: hasBias,
    attn_logit_softcapping: scoreSoftcap,
    final_logit_softcapping: model.logitSoftcap,
    embedding_scale: model.embeddingScale,
    post_norms: model.postNorms,
    sliding_windows: model.slidingWindows,
    experts: expertsOf(model),
  };
}

function nearConfig(model: ModelConfig, near: ExactTokens | null): Record<string, unknown> {
  if (near === null) return {};
  return {
    near_tokens: {
      ...near,
      num_key_value_heads: convertibleAttention(model).numKvHeads,
      rope_frequencies: model.rope.frequencies,
      attention_factor: model.rope.attentionFactor,
    },
  };
}

/** What DeepSeek's code reads too. */
function sharedConfig(model: ModelConfig, layer: EncodedLayer): Record<string, unknown> {
  const { headDim } = convertibleAttention(model);
  return {
    hidden_size: model.hiddenDim,
    intermediate_size: model.feedForward.dim,
    num_hidden_layers: model.numLayers,
    num_attention_heads: model.numHeads,
    vocab_size: model.vocabSize,
    max_position_embeddings: model.contextLength,
    rms_norm_eps: model.normEps,
    hidden_act: model.feedForward.activation === 'silu' ? 'silu' : 'gelu_pytorch_tanh',
    kv_lora_rank: layer.latentDim,
    qk_rope_head_dim: layer.ropeDim,
    qk_nope_head_dim: layer.nopeDim,
    v_head_dim: headDim,
    q_lora_rank: null,
    tie_word_embeddings: model.tiedEmbeddings,
  };
}

function expertsOf({ experts }: ModelConfig): Record<string, unknown> | null {
  if (experts === null) return null;
  const { layers, count, perToken, dim, sharedDim, routing } = experts;
  return { layers, count, per_token: perToken, dim, shared_dim: sharedDim, ...routing };
}

const biasOf = { query: 'queryBias', latentDown: 'latentDownBias', output: 'outputBias' } as const;

function tensor(name: string, shape: number[], values: Float64Array, type: FloatType): TensorSource {
  const bytes = encodeFloats(values, type, name);
  return { name, type, shape, read: () => bytes };
}

function matrix(name: string, map: Dense, dtype: MatrixType): TensorSource {
  const bytes = encodeMatrix(map, dtype, name);
  return { name, type: storedType(dtype, map.cols), shape: [map.rows, map.cols], read: () => bytes };
}
