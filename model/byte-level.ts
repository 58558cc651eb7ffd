/**
 * Byte-level BPE as a tokenizer.json: put together from a vocabulary, its merges and a cutting rule, wherever they come
 * from (GGUF metadata, vocab.json with merges.txt, a tiktoken file). Bytes are written in GPT-2's alphabet.
 */
import { preTokenizerJson, type CutRule } from './pre-tokenizers.ts';
import { bosProcessor } from './sentencepiece.ts';
import { parseTokenizer, type TokenizerJson } from './tokenizer-json.ts';

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
}

export interface ByteLevelParts {
  /** Token text to id. */
  readonly vocab: Readonly<Record<string, number>>;
  /** Pairs, most urgent first. */
  readonly merges: readonly (string | readonly [string, string])[];
  readonly added: readonly AddedToken[];
  readonly rule: CutRule;
  /** Put before every text that the model reads; undefined: none. */
  readonly bos: { readonly text: string; readonly id: number } | undefined;
}

/** @param where for messages  @throws ConfigError when the parts do not make a tokenizer */
export function byteLevelTokenizer({ vocab, merges, added, rule, bos }: ByteLevelParts, where: string): TokenizerJson {
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added.map((token) => ({
      ...token,
      normalized: false,
      single_word: false,
      lstrip: false,
      rstrip: false,
    })),
    normalizer: rule.composed ? { type: 'NFC' } : null,
    pre_tokenizer: preTokenizerJson(rule.patterns),
    post_processor: bos === undefined ? null : bosProcessor(bos.text, bos.id),
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: rule.ignoreMerges ?? false,
      vocab,
      merges,
    },
  };
  return parseTokenizer(tokenizer, where);
}

/** GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the other 68 follow from U+0100 on. [256] */
export const byteCharacters: readonly string[] = (() => {
  const isPrintable = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : next++));
})();
