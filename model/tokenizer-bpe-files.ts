/**
 * Byte-level BPE in the two forms that folders without a tokenizer.json have: vocab.json with merges.txt, and a tiktoken
 * file (a token in base64 and its rank on each line). Neither says how text is cut: the class named in
 * tokenizer_config.json decides, or for a lone tiktoken file its name; an unknown one is refused.
 */
import { readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { z } from 'zod';
import { ConfigError, messageOf } from '../config/errors.ts';
import { byteCharacters, byteLevelTokenizer, type AddedToken } from './byte-level.ts';
import { cutRuleOf, type CutRule } from './pre-tokenizers.ts';
import { isVocab, type JsonObject, type TokenizerJson } from './tokenizer-json.ts';

/** Cutting rules by tokenizer_class of tokenizer_config.json. */
const ruleOfClass: ReadonlyMap<string, string> = new Map([
  ['Qwen2Tokenizer', 'qwen2'],
  ['Qwen2TokenizerFast', 'qwen2'],
  ['QWenTokenizer', 'qwen2'],
  ['GPT2Tokenizer', 'gpt-2'],
  ['GPT2TokenizerFast', 'gpt-2'],
  ['TikTokenTokenizer', 'kimi-k2'],
  ['LlamaTokenizer', 'llama-bpe'],
  ['PreTrainedTokenizerFast', 'llama-bpe'],
]);

const maxFileBytes = 1 << 26;
const maxTokenBytes = 1024;

const addedSchema = z.record(
  z.string().regex(/^\d{1,8}$/),
  z.looseObject({ content: z.string(), special: z.boolean().default(false) }),
);
/** @param config tokenizer_config.json, where there is one */
export async function vocabAndMerges(folder: string, config: JsonObject | undefined): Promise<TokenizerJson> {
  const where = join(folder, 'vocab.json');
  const rule = ruleOf(config, undefined, where);
  const vocab = parseJson(await readText(where), where);
  if (!isVocab(vocab)) throw new ConfigError(`${where}: expected an object from tokens to ids`);
  const text = await readText(join(folder, 'merges.txt'));
  const merges = text.split(/\r?\n/).filter((line) => line !== '' && !line.startsWith('#version'));
  return byteLevelTokenizer({ vocab, merges, added: addedTokens(config, where), rule, bos: undefined }, where);
}

/** Whether a file looks like `base64 rank` lines: SentencePiece models share the name tokenizer.model. */
export async function isTiktoken(path: string): Promise<boolean> {
  const head = (await readFile(path)).subarray(0, 64).toString('latin1');
  return /^[A-Za-z0-9+/]+={0,2} \d+\r?\n/.test(head);
}

/** @param config tokenizer_config.json, where there is one */
export async function tiktokenTokenizer(path: string, config: JsonObject | undefined): Promise<TokenizerJson> {
  const ranks = parseRanks(await readText(path), path);
  const rule = ruleOf(config, basename(path), path);
  const vocab = Object.fromEntries(ranks);
  const added = addedTokens(config, path);
  // A piece that is a token as a whole is taken first in this format, whatever the family.
  const parts = { vocab, merges: mergesOf(ranks), added, rule: { ...rule, ignoreMerges: true }, bos: undefined };
  return byteLevelTokenizer(parts, path);
}

/** Tokens in GPT-2's alphabet, by their text; ranks are ids. */
function parseRanks(text: string, path: string): Map<string, number> {
  const ranks = new Map<string, number>();
  for (const [number, line] of text.split(/\r?\n/).entries()) {
    if (line === '') continue;
    const match = /^([A-Za-z0-9+/]+={0,2}) (\d{1,8})$/.exec(line);
    const bytes = match?.[1] === undefined ? undefined : Buffer.from(match[1], 'base64');
    if (bytes === undefined || bytes.length === 0 || bytes.length > maxTokenBytes)
      throw new ConfigError(`${path}:${number + 1}: expected a token in base64 and its rank`);
    let token = '';
    for (const byte of bytes) token += byteCharacters[byte];
    ranks.set(token, Number(match?.[2]));
  }
  if (ranks.size === 0) throw new ConfigError(`${path}: no tokens`);
  return ranks;
}

/** Every way to put a token together from two others, in the order of the result's rank, then of the parts'. */
function mergesOf(ranks: ReadonlyMap<string, number>): [string, string][] {
  const merges: [string, string][] = [];
  const byRank = [...ranks].sort(([, a], [, b]) => a - b);
  for (const [token] of byRank) {
    const splits: { pair: [string, string]; left: number; right: number }[] = [];
    for (let i = 1; i < token.length; i++) {
      const left = token.slice(0, i);
      const leftRank = ranks.get(left);
      if (leftRank === undefined) continue;
      const right = token.slice(i);
      const rightRank = ranks.get(right);
      if (rightRank !== undefined) splits.push({ pair: [left, right], left: leftRank, right: rightRank });
    }
    if (splits.length > 1) splits.sort((a, b) => a.left - b.left || a.right - b.right);
    for (const { pair } of splits) merges.push(pair);
  }
  return merges;
}

function addedTokens(config: JsonObject | undefined, where: string): AddedToken[] {
  const parsed = addedSchema.safeParse(config?.['added_tokens_decoder'] ?? {});
  if (!parsed.success)
    throw new ConfigError(`${where}: added_tokens_decoder of tokenizer_config.json: ${z.prettifyError(parsed.error)}`);
  return Object.entries(parsed.data).map(([id, { content, special }]) => ({ id: Number(id), content, special }));
}

function ruleOf(config: JsonObject | undefined, fileName: string | undefined, where: string): CutRule {
  const name = config?.['tokenizer_class'];
  if (typeof name === 'string') {
    const rule = ruleOfClass.get(name);
    if (rule === undefined)
      throw new ConfigError(
        `${where}: tokenizer_class '${name}' is not supported without a tokenizer.json; known: ${[...ruleOfClass.keys()].join(', ')}`,
      );
    return cutRuleOf(rule, where);
  }
  if (fileName === 'qwen.tiktoken') return cutRuleOf('qwen2', where);
  if (fileName === 'tokenizer.model' || fileName?.startsWith('llama3') === true) return cutRuleOf('llama-bpe', where);
  throw new ConfigError(
    `${where}: how the text is cut is not known without a tokenizer_config.json that names its tokenizer_class`,
  );
}

async function readText(path: string): Promise<string> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    throw new ConfigError(`tokenizer: cannot read ${path}: ${messageOf(cause)}`, { cause });
  }
  if (bytes.byteLength > maxFileBytes)
    throw new ConfigError(`${path}: ${bytes.byteLength} bytes; a tokenizer file has at most ${maxFileBytes}`);
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');
}

function parseJson(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`${where}: not JSON: ${messageOf(cause)}`, { cause });
  }
}
