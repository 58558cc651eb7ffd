/**
 * The bytes that each token stands for, from the `decoder` of a tokenizer.json: byte-level vocabularies write a byte as
 * one printable character, SentencePiece ones write a space as U+2581 and single bytes as <0x0A>. Refuses decoders that
 * are neither (WordPiece, CTC), which no model of ours uses.
 */
import { ConfigError } from '../config/errors.ts';
import { byteCharacters } from './byte-level.ts';
import { tokenTexts, type TokenizerJson } from './tokenizer-json.ts';

export interface TokenBytes {
  /** UTF-8, or a part of a character; empty for an id without a token. */
  of(id: number): Uint8Array;
  /** Encoding put a space before the text; decoding takes it off again. */
  readonly spacePrefix: boolean;
}

const noBytes = new Uint8Array(0);
const bytePiece = /^<0x([0-9A-Fa-f]{2})>$/;

/** @throws ConfigError when the decoder is of a kind that is not supported */
export function tokenBytesOf(tokenizer: TokenizerJson, source: string): TokenBytes {
  const parts = partsOf(tokenizer.decoder, 'decoders');
  const types = parts.map((part) => part['type']);
  const isByteLevel = types.includes('ByteLevel');
  const isSentencePiece = types.includes('Metaspace') || types.includes('ByteFallback') || types.includes('Replace');
  if (!isByteLevel && !isSentencePiece)
    throw new ConfigError(
      `tokenizer of ${source}: decoder ${types.join(', ') || 'null'} is not supported; ByteLevel, Metaspace and ByteFallback are`,
    );
  const texts = tokenTexts(tokenizer);
  const added = new Set(tokenizer.added_tokens.map(({ id }) => id));
  const cache: (Uint8Array | undefined)[] = [];
  const bytesOf = (id: number): Uint8Array => {
    const text = texts[id];
    if (text === undefined) return noBytes;
    if (added.has(id)) return new TextEncoder().encode(text);
    return isByteLevel ? byteLevelBytes(text) : sentencePieceBytes(text);
  };
  return {
    of: (id) => (cache[id] ??= bytesOf(id)),
    spacePrefix: parts.some(
      (part) =>
        (part['type'] === 'Strip' && part['content'] === ' ' && part['start'] === 1) ||
        (part['type'] === 'Metaspace' && part['prepend_scheme'] !== 'never' && part['add_prefix_space'] !== false),
    ),
  };
}

/** The parts of a decoder or pre-tokenizer: those of a Sequence, or the one itself. */
function partsOf(
  component: Readonly<Record<string, unknown>> | null,
  listKey: string,
): Readonly<Record<string, unknown>>[] {
  if (component === null) return [];
  const list = component[listKey];
  if (!Array.isArray(list)) return [component];
  return list.filter((part) => typeof part === 'object' && part !== null);
}

function byteLevelBytes(text: string): Uint8Array {
  const bytes: number[] = [];
  for (const character of text) {
    const byte = byteOfCharacter.get(character);
    // A character outside the alphabet makes the token plain text, as in the Rust implementation.
    if (byte === undefined) return new TextEncoder().encode(text);
    bytes.push(byte);
  }
  return Uint8Array.from(bytes);
}

function sentencePieceBytes(text: string): Uint8Array {
  const byte = bytePiece.exec(text)?.[1];
  if (byte !== undefined) return Uint8Array.of(parseInt(byte, 16));
  return new TextEncoder().encode(text.replaceAll('\u2581', ' '));
}

const byteOfCharacter: ReadonlyMap<string, number> = new Map(
  byteCharacters.map((character, byte) => [character, byte]),
);
