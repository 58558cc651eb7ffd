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

export interface CutRule {
  readonly patterns: readonly string[];
  /** A piece that is a token as a whole is taken without merging. */
  readonly ignoreMerges?: boolean;
  /** Text is brought to composed form first. */
  readonly composed?: boolean;
  readonly addsBos?: boolean;
}

/** CJK of the DeepSeek vocabularies. */
const cjk = '[\\u4E00-\\u9FA5\\u0800-\\u4E00\\uAC00-\\uD7FF]+';
/** Letters with case, of the scripts that DeepSeek LLM's tokenizer lists. */
const deepseekLetters =
  'A-Za-z\\u00B5\\u00C0-\\u00D6\\u00D8-\\u00F6\\u00F8-\\u01BA\\u01BC-\\u01BF\\u01C4-\\u0293\\u0295-\\u02AF\\u0370-\\u0373' +
  '\\u0376\\u0377\\u037B-\\u037D\\u037F\\u0386\\u0388-\\u038A\\u038C\\u038E-\\u03A1\\u03A3-\\u03F5\\u03F7-\\u0481\\u048A-\\u052F' +
  '\\u0531-\\u0556\\u10A0-\\u10C5\\u13A0-\\u13F5\\u13F8-\\u13FD\\u1C90-\\u1CBA\\u1CBD-\\u1CBF\\u1D00-\\u1D2B\\u1D6B-\\u1D77' +
  '\\u1D79-\\u1D9A\\u1E00-\\u1F15\\u1F18-\\u1F1D\\u1F20-\\u1F45\\u1F48-\\u1F4D\\u1F50-\\u1F57\\u1F59\\u1F5B\\u1F5D' +
  '\\u1F5F-\\u1F7D\\u1F80-\\u1FB4\\u1FB6-\\u1FBC\\u1FBE\\u1FC2-\\u1FC4\\u1FC6-\\u1FCC\\u1FD0-\\u1FD3\\u1FD6-\\u1FDB' +
  '\\u1FE0-\\u1FEC\\u1FF2-\\u1FF4\\u1FF6-\\u1FFC\\u2102\\u2107\\u210A-\\u2113\\u2115\\u2119-\\u211D\\u2124\\u2126\\u2128' +
  '\\u212A-\\u212D\\u212F-\\u2134\\u2139\\u213C-\\u213F\\u2145-\\u2149\\u214E\\u2183\\u2184\\u2C00-\\u2C7B\\u2C7E-\\u2CE4' +
  '\\u2CEB-\\u2CEE\\u2CF2\\u2CF3\\uA640-\\uA66D\\uA680-\\uA69B\\uA722-\\uA76F\\uA771-\\uA787\\uA78B-\\uA78E\\uAB70-\\uABBF' +
  '\\uFB00-\\uFB06\\uFB13-\\uFB17\\uFF21-\\uFF3A\\uFF41-\\uFF5A\\u{10400}-\\u{1044F}\\u{104B0}-\\u{104D3}' +
  '\\u{104D8}-\\u{104FB}\\u{10C80}-\\u{10CB2}\\u{10CC0}-\\u{10CF2}\\u{118A0}-\\u{118DF}\\u{1E900}-\\u{1E943}';
const deepseekLlm: CutRule = {
  patterns: [
    '[\\r\\n]',
    `\\s?[${deepseekLetters}]+`,
    '\\s?[!-/:-~\\uFF01-\\uFF0F\\uFF1A-\\uFF5E\\u2018-\\u201F\\u3000-\\u3002]+',
    '\\s+$',
    cjk,
    '\\p{N}+',
  ],
  addsBos: true,
};
const deepseekCoder: CutRule = {
  patterns: ['[\\r\\n]', '\\s?\\p{L}+', '\\s?\\p{P}+', cjk, '\\p{N}'],
  addsBos: true,
};
/** Kimi's: Han by itself, words of other letters with their contraction, digits by threes. */
const kimiWords = (first: string, then: string): string =>
  `[^\\r\\n\\p{L}\\p{N}]?(?:(?!\\p{Script=Han})[${first}])${then === '+' ? '*' : '+'}` +
  `(?:(?!\\p{Script=Han})[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}])${then}${contractions}?`;
const kimiUpper = '\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}';
const kimi: CutRule = {
  patterns: [`\\p{Script=Han}+|${kimiWords(kimiUpper, '+')}|${kimiWords(kimiUpper, '*')}|\\p{N}{1,3}|${afterWords}`],
  ignoreMerges: true,
};

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
  ['deepseek-llm', deepseekLlm],
  ['deepseek-coder', deepseekCoder],
  ['kimi-k2', kimi],
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
