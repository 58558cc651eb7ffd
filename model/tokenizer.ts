/**
 * Text to token ids and back. Encoding is done by @huggingface/tokenizers on a tokenizer.json; decoding is done here,
 * on bytes, so that a stream of tokens never gives half a character. Chat templates are in chat-template.ts, the
 * sources of a tokenizer in tokenizer-files.ts.
 */
import { TextDecoder } from 'node:util';
import { Tokenizer as Encoder } from '@huggingface/tokenizers';
import { ConfigError, messageOf } from '../config/errors.ts';
import { tokenBytesOf, type TokenBytes } from './token-bytes.ts';
import { loadTokenizerFiles } from './tokenizer-files.ts';
import { tokenTexts, type TokenizerFiles } from './tokenizer-json.ts';
import { repairTokenizer } from './tokenizer-repairs.ts';

export interface DecodeOptions {
  /** Leave out control tokens such as <|im_end|>. */
  readonly skipSpecial: boolean;
}

export interface Tokenizer {
  /** Ids are below this. The model's vocabulary may be larger (padded). */
  readonly vocabSize: number;
  readonly bosId: number | undefined;
  /** Generation ends at any of these; from the model's, the generation's and the tokenizer's configuration. Ascending. */
  readonly eosIds: readonly number[];
  /** The model expects `bosId` before a text. `encode` does not put it there, and chat templates write it themselves. */
  readonly addsBos: boolean;

  /** Adds no token of its own; the text of a special token becomes that token. Lone surrogates count as U+FFFD. */
  encode(text: string): number[];
  /** Ids without a token (padding of the vocabulary) give nothing. */
  decode(ids: readonly number[], options: DecodeOptions): string;
  /** Decodes token by token what continues a prompt. */
  newStream(options?: DecodeOptions): TokenStream;
  /** The text of one token, special or not; U+FFFD where it is part of a character. */
  tokenText(id: number): string;
  /** The bytes of one token's text, possibly part of a character; none for ids without a token. */
  tokenBytes(id: number): Uint8Array;
  /** Whether it is a control token: it has no part in an answer's text. */
  isControl(id: number): boolean;
}

export interface TokenStream {
  /** The text that is complete with this token, possibly ''. */
  push(id: number): string;
  /** What is left: '' unless the text stops inside a character. */
  end(): string;
}

/**
 * @param path a model folder, a .gguf or .safetensors file, or a SentencePiece .model file
 * @throws ConfigError when there is no tokenizer, or one of a kind that is not supported
 */
export async function loadTokenizer(path: string): Promise<Tokenizer> {
  return makeTokenizer(await loadTokenizerFiles(path));
}

/** @throws ConfigError when the files describe a tokenizer of a kind that is not supported */
export function makeTokenizer(files: TokenizerFiles): Tokenizer {
  const texts = tokenTexts(files.tokenizer);
  const bytes = tokenBytesOf(files.tokenizer, files.source);
  const special = new Set(files.tokenizer.added_tokens.filter((token) => token.special).map((token) => token.id));
  const encoder = encoderOf(files);
  const addsBos = files.config['add_bos_token'] ?? encoder.encode('a').ids[0] === files.bosId;
  return {
    vocabSize: texts.length,
    bosId: files.bosId,
    eosIds: files.eosIds,
    addsBos: addsBos === true && files.bosId !== undefined,
    encode: (text) => encoder.encode(wellFormed(text), { add_special_tokens: false }).ids,
    decode: (ids, { skipSpecial }) => decode(bytes, skipSpecial ? ids.filter((id) => !special.has(id)) : ids),
    newStream: (options = { skipSpecial: true }) => newStream(bytes, options.skipSpecial ? special : new Set()),
    tokenText: (id) => newDecoder().decode(bytes.of(id)),
    tokenBytes: (id) => bytes.of(id),
    isControl: (id) => special.has(id),
  };
}

function encoderOf({ source, tokenizer, config }: TokenizerFiles): Encoder {
  try {
    return new Encoder(repairTokenizer(tokenizer), config);
  } catch (cause) {
    throw new ConfigError(`tokenizer of ${source}: ${messageOf(cause)}`, { cause });
  }
}

function decode(bytes: TokenBytes, ids: readonly number[]): string {
  const decoder = newDecoder();
  let text = '';
  for (const id of ids) text += decoder.decode(bytes.of(id), { stream: true });
  text += decoder.decode();
  return bytes.spacePrefix && text.startsWith(' ') ? text.slice(1) : text;
}

function newStream(bytes: TokenBytes, skipped: ReadonlySet<number>): TokenStream {
  const decoder = newDecoder();
  return {
    push: (id) => (skipped.has(id) ? '' : decoder.decode(bytes.of(id), { stream: true })),
    end: () => decoder.decode(),
  };
}

/** A byte-order mark is text like any other here. */
function newDecoder(): TextDecoder {
  return new TextDecoder('utf-8', { ignoreBOM: true });
}

function wellFormed(text: string): string {
  return text.replace(/\p{Surrogate}/gu, '\uFFFD');
}
