/**
 * Opens a model: a Hugging Face folder, a .safetensors file beside its config.json, or a .gguf file. Finds the family,
 * checks every weight's shape against the configuration, reads no weights. A new family is one file in families/ and a
 * line in the tables below.
 */
import { readFile, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { ConfigError, messageOf } from '../config/errors.ts';
import type { Checkpoint, WeightType } from './checkpoint.ts';
import { toFloat32 } from './dequantize.ts';
import { describeConverted } from './families/converted.ts';
import type { DescribeGguf, DescribeHub, ModelDescription } from './families/description.ts';
import { describeHubDeepseek2, describeHubDeepseek3, describeHubKimi2 } from './families/deepseek.ts';
import { hubKeysOfDeepseekNative, isDeepseekNative } from './families/deepseek-native.ts';
import { describeHubGemma2 } from './families/gemma2.ts';
import {
  describeGgufGemma2,
  describeGgufLlama,
  describeGgufQwen2,
  describeGgufQwen3,
  describeGgufQwen3Moe,
} from './families/gguf-decoder.ts';
import { describeGgufDeepseek2 } from './families/gguf-deepseek2.ts';
import { describeHubLlama } from './families/llama.ts';
import { describeHubMistral } from './families/mistral.ts';
import { describeHubMixtral } from './families/mixtral.ts';
import { describeHubQwen2, describeHubQwen3, describeHubQwen3Moe } from './families/qwen.ts';
import { openGguf } from './gguf.ts';
import { openSafetensors } from './safetensors.ts';
import { StoredCheckpoint } from './stored-checkpoint.ts';
import type { StoredTensor } from './tensor-store.ts';
import { isWeightType } from './tensor-types.ts';

/** By `model_type` of config.json. */
const hubFamilies: ReadonlyMap<string, DescribeHub> = new Map([
  ['llama', describeHubLlama],
  ['mistral', describeHubMistral],
  ['mixtral', describeHubMixtral],
  ['qwen2', describeHubQwen2],
  ['qwen3', describeHubQwen3],
  ['qwen3_moe', describeHubQwen3Moe],
  ['gemma2', describeHubGemma2],
  ['deepseek_v2', describeHubDeepseek2],
  ['deepseek_v3', describeHubDeepseek3],
  ['kimi_k2', describeHubKimi2],
  ['tpla_mla', describeConverted],
]);

/** By `general.architecture` of GGUF metadata. */
const ggufFamilies: ReadonlyMap<string, DescribeGguf> = new Map([
  ['llama', describeGgufLlama],
  ['qwen2', describeGgufQwen2],
  ['qwen3', describeGgufQwen3],
  ['qwen3moe', describeGgufQwen3Moe],
  ['gemma2', describeGgufGemma2],
  ['deepseek2', describeGgufDeepseek2],
]);

/** @throws ConfigError: no such path, no config.json, unknown family, damaged file, missing or misshapen weight */
export async function openCheckpoint(path: string): Promise<Checkpoint> {
  switch (await kindOf(path)) {
    case 'folder':
      return openHub(path, join(path, 'config.json'));
    case 'safetensors':
      return openHub(path, join(dirname(path), 'config.json'));
    case 'gguf':
      return openGgufCheckpoint(path);
  }
}

/** What config.json alone says, for planning: sizes, names, and the type that the weights are said to have. */
export async function describeConfig(
  path: string,
): Promise<{ readonly description: ModelDescription; readonly storedType: WeightType }> {
  const read = await readConfig(path);
  const config = isDeepseekNative(read) ? hubKeysOfDeepseekNative(read, path) : read;
  const describe = familyOf(hubFamilies, modelTypeOf(config, path), `${path}: model_type`);
  return { description: describe(config, undefined), storedType: storedTypeOf(config) };
}

/** bf16 where the file does not say: so are most published ones. */
function storedTypeOf(config: unknown): WeightType {
  const keys = z.object({ torch_dtype: z.string().nullish(), dtype: z.string().nullish() }).safeParse(config).data;
  const name = keys?.dtype ?? keys?.torch_dtype;
  if (name === 'float32') return 'f32';
  return name === 'float16' ? 'f16' : 'bf16';
}

async function kindOf(path: string): Promise<'folder' | 'safetensors' | 'gguf'> {
  const expected = 'expected a Hugging Face folder, a .gguf or a .safetensors file';
  let isFolder: boolean;
  try {
    isFolder = (await stat(path)).isDirectory();
  } catch (cause) {
    throw new ConfigError(`model: ${path}: no such file or folder; ${expected}`, { cause });
  }
  if (isFolder) return 'folder';
  if (path.endsWith('.gguf')) return 'gguf';
  if (path.endsWith('.safetensors')) return 'safetensors';
  throw new ConfigError(`model: ${path}: ${expected}`);
}

async function openHub(path: string, configPath: string): Promise<Checkpoint> {
  const config = await readConfig(configPath);
  const describe = familyOf(hubFamilies, modelTypeOf(config, configPath), `${configPath}: model_type`);
  const store = await openSafetensors(path);
  try {
    return new StoredCheckpoint(path, store, describe(config, store.tensors));
  } catch (error) {
    await store[Symbol.asyncDispose]();
    throw error;
  }
}

async function openGgufCheckpoint(path: string): Promise<Checkpoint> {
  // The vocabulary is the tokenizer's, which only the coordinator has.
  const store = await openGguf(path, (key) => !key.startsWith('tokenizer.'));
  try {
    const architecture = store.metadata.get('general.architecture');
    if (typeof architecture !== 'string')
      throw new ConfigError(`${path}: metadata has no general.architecture; not a model file`);
    const describe = familyOf(ggufFamilies, architecture, `${path}: general.architecture`);
    const divisors = store.tensors.get('rope_freqs.weight');
    const description = describe({
      metadata: store.metadata,
      tensors: store.tensors,
      ropeDivisors: divisors && (await readVector(divisors)),
    });
    return new StoredCheckpoint(path, store, description);
  } catch (error) {
    await store[Symbol.asyncDispose]();
    throw error;
  }
}

async function readConfig(path: string): Promise<unknown> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw new ConfigError(`model: no ${path}: a Hugging Face model needs its config.json beside the weights`, {
      cause,
    });
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`${path}: not JSON: ${messageOf(cause)}`, { cause });
  }
}

function modelTypeOf(config: unknown, path: string): string {
  if (typeof config === 'object' && config !== null && 'model_type' in config && typeof config.model_type === 'string')
    return config.model_type;
  throw new ConfigError(`${path}: model_type is missing; expected one of ${[...hubFamilies.keys()].join(', ')}`);
}

function familyOf<T>(families: ReadonlyMap<string, T>, name: string, where: string): T {
  const family = families.get(name);
  if (family === undefined)
    throw new ConfigError(`${where} '${name}' is not supported; known: ${[...families.keys()].join(', ')}`);
  return family;
}

/** Values of a small tensor. [its number of elements] */
async function readVector({ name, type, shape, file, offset, bytes }: StoredTensor): Promise<number[]> {
  if (!isWeightType(type)) throw new ConfigError(`weights: ${name} is stored as ${type}, expected f32`);
  const cols = shape.reduce((a, b) => a * b, 1);
  return [...toFloat32({ rows: 1, cols, type, bytes: await file.read(offset, bytes, name) })];
}
