/**
 * Rewrites a tokenizer.json where @huggingface/tokenizers 0.2.0 cuts text otherwise than the Rust implementation does,
 * into an equivalent that it gets right. Each rewrite names its defect; it can go when the library is right.
 */
import { gpt2Pattern } from './pre-tokenizers.ts';
import type { JsonObject, TokenizerJson } from './tokenizer-json.ts';

export function repairTokenizer(tokenizer: TokenizerJson): TokenizerJson {
  if (tokenizer.pre_tokenizer === null) return tokenizer;
  return { ...tokenizer, pre_tokenizer: { type: 'Sequence', pretokenizers: repairAll([tokenizer.pre_tokenizer]) } };
}

function repairAll(parts: readonly JsonObject[]): JsonObject[] {
  return parts.flatMap((part) => {
    const inner = part['pretokenizers'];
    if (part['type'] === 'Sequence' && Array.isArray(inner)) return repairAll(inner);
    if (part['type'] === 'ByteLevel') return repairByteLevel(part);
    if (part['type'] === 'Digits') return repairDigits(part);
    return [part];
  });
}

/**
 * Defect: its GPT-2 pattern uses JavaScript's `\s`, which counts U+FEFF as a space and U+0085 as none. A Split of the
 * same pattern goes through the library's translation from Oniguruma and is right. With a prefix space the two are not
 * the same, and the part stays as it is.
 */
function repairByteLevel(part: JsonObject): JsonObject[] {
  if (part['use_regex'] === false || part['add_prefix_space'] === true) return [part];
  return [isolate(gpt2Pattern), { ...part, use_regex: false }];
}

/** Defect: it takes only 0 to 9 for digits; the Rust implementation takes every numeric character. */
function repairDigits(part: JsonObject): JsonObject[] {
  return [isolate(part['individual_digits'] === true ? '\\p{N}' : '\\p{N}+')];
}

function isolate(pattern: string): JsonObject {
  return { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false };
}
