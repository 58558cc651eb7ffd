/**
 * How byte-level BPE vocabularies cut text before merging: GGUF names the rule (tokenizer.ggml.pre), tokenizer.json
 * spells it out. This table has the spelled-out form of the names we know. Each pattern cuts the pieces that the one
 * before it left. Refuses a name it does not know: a wrong cut gives wrong tokens without any error.
 */
import { ConfigError } from '../config/errors.ts';
import type { JsonObject } from './tokenizer-json.ts';

/** Written for Oniguruma, as tokenizer.json has it: `\s` is White_Space there, which JavaScript's `\s` is not. */
export const gpt2Pattern = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const afterWords = ' ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
const llama3Pattern = `${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|${afterWords}`;
const qwen2Pattern = `${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|${afterWords}`;
const deepseek3Pattern =
  '[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+' +
  '| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
const tekkenPattern =
  '[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+' +
  '|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*' +
  '|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

interface CutRule {
  readonly patterns: readonly string[];
  /** A piece that is a token as a whole is taken without merging. */
  readonly ignoreMerges?: boolean;
  /** Text is brought to composed form first. */
  readonly composed?: boolean;
  readonly addsBos?: boolean;
}

const singleDigits: CutRule = { patterns: ['\\p{N}', gpt2Pattern] };
const gpt2: CutRule = { patterns: [gpt2Pattern] };
const llama3: CutRule = { patterns: [llama3Pattern], ignoreMerges: true, addsBos: true };
const qwen2: CutRule = { patterns: [qwen2Pattern], composed: true };
const byPunctuation: CutRule = {
  patterns: ['[\\p{P}\\$\\+<=>\\^~\\|]+', gpt2Pattern, '\\p{N}+', '[0-9][0-9][0-9]'],
};

const cutRules: ReadonlyMap<string, CutRule> = new Map([
  ['default', byPunctuation],
  ['gpt-2', gpt2],
  ['smollm', singleDigits],
  ['starcoder', singleDigits],
  ['refact', singleDigits],
  ['llama-bpe', llama3],
  ['llama3', llama3],
  ['qwen2', qwen2],
  ['deepseek-r1-qwen', { patterns: [qwen2Pattern] }],
  ['deepseek-v3', { patterns: ['\\p{N}{1,3}', '[一-龥぀-ゟ゠-ヿ]+', deepseek3Pattern], addsBos: true }],
  ['falcon', { patterns: ['[\\p{P}\\$\\+<=>\\^~\\|`]+', gpt2Pattern, '[0-9][0-9][0-9]'] }],
  ['tekken', { patterns: [tekkenPattern], ignoreMerges: true, addsBos: true }],
]);

/** @throws ConfigError listing the names that are known */
export function cutRuleOf(name: string, where: string): CutRule {
  const rule = cutRules.get(name);
  if (rule === undefined)
    throw new ConfigError(
      `${where}: pre-tokenizer '${name}' is not supported; known: ${[...cutRules.keys()].join(', ')}. A tokenizer.json beside the weights needs no such name`,
    );
  return rule;
}

/** The `pre_tokenizer` of tokenizer.json. */
export function preTokenizerJson(patterns: readonly string[]): JsonObject {
  const cuts = patterns.map((pattern) => ({
    type: 'Split',
    pattern: { Regex: pattern },
    behavior: 'Isolated',
    invert: false,
  }));
  const toBytes = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
  return { type: 'Sequence', pretokenizers: [...cuts, toBytes] };
}
