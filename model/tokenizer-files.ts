/**
 * A tokenizer as the Hugging Face files describe it, wherever it comes from: tokenizer.json and tokenizer_config.json
 * of a folder, vocab.json with merges.txt, a tiktoken file, GGUF metadata, or a SentencePiece model. tokenizer.ts runs it, tokenizer-export.ts writes it back.
 */
import { readFile, readdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { ConfigError, messageOf } from '../config/errors.ts';
import { sentencePieceFiles } from './sentencepiece.ts';
import { isTiktoken, tiktokenTokenizer, vocabAndMerges } from './tokenizer-bpe-files.ts';
import { ggufTokenizerFiles } from './tokenizer-gguf.ts';
import {
  parseTokenizer,
  tokenTexts,
  type JsonObject,
  type TokenizerFiles,
  type TokenizerJson,
} from './tokenizer-json.ts';

const id = z
  .number()
  .int()
  .min(0)
  .max(1 << 24);
const tokenSchema = z.union([z.string(), z.looseObject({ content: z.string() }).transform(({ content }) => content)]);
const configSchema = z.looseObject({
  bos_token: tokenSchema.nullish(),
  eos_token: tokenSchema.nullish(),
  chat_template: z.union([z.string(), z.array(z.looseObject({ name: z.string(), template: z.string() }))]).nullish(),
});
const endIdsSchema = z.looseObject({
  bos_token_id: id.nullish(),
  eos_token_id: z.union([id, z.array(id)]).nullish(),
});

/**
 * @param path a model folder, a .gguf or .safetensors file, or a SentencePiece or tiktoken file
 * @throws ConfigError when there is no tokenizer or it cannot be understood
 */
export async function loadTokenizerFiles(path: string): Promise<TokenizerFiles> {
  if (path.endsWith('.gguf')) return ggufTokenizerFiles(path);
  if (path.endsWith('.tiktoken')) return loneFile(path, await tiktokenTokenizer(path, undefined));
  if (path.endsWith('.model'))
    return (await isTiktoken(path))
      ? loneFile(path, await tiktokenTokenizer(path, undefined))
      : sentencePieceFiles(path);
  const folder = await folderOf(path);
  const text = await readOptional(join(folder, 'tokenizer.json'));
  if (text !== undefined) return hubFiles(folder, parseTokenizer(parseJson(text, 'tokenizer.json'), 'tokenizer.json'));
  const names = await readdir(folder);
  const config = await readObject(join(folder, 'tokenizer_config.json'));
  if (names.includes('vocab.json') && names.includes('merges.txt'))
    return hubFiles(folder, await vocabAndMerges(folder, config));
  const models = names.filter((name) => name.endsWith('.model') || name.endsWith('.tiktoken'));
  const [name] = models;
  if (name === undefined || models.length > 1)
    throw new ConfigError(
      `tokenizer: ${folder} has neither tokenizer.json, nor vocab.json and merges.txt, nor one .model or .tiktoken file`,
    );
  const model = join(folder, name);
  if (await isTiktoken(model)) return hubFiles(folder, await tiktokenTokenizer(model, config));
  const files = await sentencePieceFiles(model);
  return hubFiles(folder, files.tokenizer, files);
}

/** Nothing beside the tokenizer says which tokens begin and end a text. */
function loneFile(source: string, tokenizer: TokenizerJson): TokenizerFiles {
  return { source, tokenizer, config: {}, bosId: undefined, eosIds: [], chatTemplate: undefined };
}

/** A folder's own files decide; `fallback` fills what they leave open. */
async function hubFiles(folder: string, tokenizer: TokenizerJson, fallback?: TokenizerFiles): Promise<TokenizerFiles> {
  const rawConfig = await readObject(join(folder, 'tokenizer_config.json'));
  const { chat_template: template, ...config } = parseWith(configSchema, rawConfig, 'tokenizer_config.json');
  const model = parseWith(endIdsSchema, await readObject(join(folder, 'config.json')), 'config.json');
  const generation = parseWith(
    endIdsSchema,
    await readObject(join(folder, 'generation_config.json')),
    'generation_config.json',
  );
  const idOf = (text: string | null | undefined): number | undefined => {
    const found = text == null ? -1 : tokenTexts(tokenizer).indexOf(text);
    return found === -1 ? undefined : found;
  };
  const eos = [model.eos_token_id, generation.eos_token_id, idOf(config.eos_token), ...(fallback?.eosIds ?? [])].flat();
  return {
    source: folder,
    tokenizer,
    config: rawConfig === undefined ? (fallback?.config ?? {}) : config,
    bosId: idOf(config.bos_token) ?? model.bos_token_id ?? generation.bos_token_id ?? fallback?.bosId,
    eosIds: [...new Set(eos.filter((value) => typeof value === 'number'))].sort((a, b) => a - b),
    chatTemplate: (await readOptional(join(folder, 'chat_template.jinja'))) ?? defaultTemplate(template),
  };
}

function defaultTemplate(template: z.infer<typeof configSchema>['chat_template']): string | undefined {
  if (typeof template === 'string' || template == null) return template ?? undefined;
  return template.find(({ name }) => name === 'default')?.template;
}

async function folderOf(path: string): Promise<string> {
  try {
    return (await stat(path)).isDirectory() ? path : dirname(path);
  } catch (cause) {
    throw new ConfigError(`tokenizer: ${path}: no such file or folder`, { cause });
  }
}

async function readObject(path: string): Promise<JsonObject | undefined> {
  const text = await readOptional(path);
  return text === undefined ? undefined : parseWith(z.looseObject({}), parseJson(text, path), path);
}

async function readOptional(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw new ConfigError(`tokenizer: cannot read ${path}: ${messageOf(error)}`, { cause: error });
  }
}

function parseJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`${where}: not JSON: ${messageOf(cause)}`, { cause });
  }
}

function parseWith<T>(schema: z.ZodType<T>, value: unknown, where: string): T {
  const parsed = schema.safeParse(value ?? {});
  if (parsed.success) return parsed.data;
  throw new ConfigError(`${where}: ${z.prettifyError(parsed.error)}`);
}
