/**
 * SentencePiece vocabularies, from a .model file (a small protobuf message, read here by hand) or from pieces that GGUF
 * lists, turned into the tokenizer.json that gives the same tokens. BPE models with byte fallback (Llama, Mistral) and
 * plain unigram models; refuses models with a character map of their own, and word and character models.
 */
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { ConfigError, messageOf } from '../config/errors.ts';
import { fieldsOf, type ProtobufField } from './protobuf.ts';
import { parseTokenizer, type JsonObject, type TokenizerFiles, type TokenizerJson } from './tokenizer-json.ts';

export interface Piece {
  readonly text: string;
  readonly score: number;
  readonly type: number;
}

/** Numbers of SentencePiece, used by GGUF too. */
export const pieceTypes = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

export interface SentencePieceOptions {
  /** A space is put before the text. */
  readonly addSpacePrefix: boolean;
  /** What has no piece is written as byte pieces <0x00> .. <0xFF>. */
  readonly byteFallback: boolean;
  /** Put before the text when special tokens are asked for. */
  readonly bosId: number | undefined;
}

const space = '\u2581';

/** @throws ConfigError when the file cannot be read, is damaged, or of a kind that is not supported */
export async function sentencePieceFiles(path: string): Promise<TokenizerFiles> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    throw new ConfigError(`tokenizer: cannot read ${path}: ${messageOf(cause)}`, { cause });
  }
  const model = parseModel(bytes, basename(path));
  const { pieces, bosId, eosId } = model;
  const textOf = (id: number): string | undefined => pieces[id]?.text;
  const options = { addSpacePrefix: model.addSpacePrefix, byteFallback: model.byteFallback, bosId };
  return {
    source: path,
    tokenizer: model.isUnigram ? unigramTokenizer(pieces, options) : sentencePieceTokenizer(pieces, options),
    config: {
      tokenizer_class: 'PreTrainedTokenizerFast',
      bos_token: textOf(bosId) ?? null,
      eos_token: textOf(eosId) ?? null,
      add_bos_token: textOf(bosId) !== undefined,
      clean_up_tokenization_spaces: false,
    },
    bosId: textOf(bosId) === undefined ? undefined : bosId,
    eosIds: textOf(eosId) === undefined ? [] : [eosId],
    chatTemplate: undefined,
  };
}

/** BPE: two neighbours merge into the piece with the best score, so merges are ordered by the score of their result. */
export function sentencePieceTokenizer(pieces: readonly Piece[], options: SentencePieceOptions): TokenizerJson {
  const unknown = pieces.find(({ type }) => type === pieceTypes.unknown)?.text ?? null;
  const model = {
    type: 'BPE',
    dropout: null,
    unk_token: unknown,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: true,
    byte_fallback: options.byteFallback,
    ignore_merges: false,
    vocab: Object.fromEntries(pieces.map(({ text }, id) => [text, id])),
    merges: mergesOf(pieces),
  };
  return wrap(pieces, model, options);
}

/** `post_processor` of tokenizer.json that puts one token before the text. */
export function bosProcessor(text: string, id: number): JsonObject {
  const bos = { SpecialToken: { id: text, type_id: 0 } };
  const sequence = (name: string, type: number): JsonObject => ({ Sequence: { id: name, type_id: type } });
  return {
    type: 'TemplateProcessing',
    single: [bos, sequence('A', 0)],
    pair: [bos, sequence('A', 0), bos, sequence('B', 1)],
    special_tokens: { [text]: { id: text, ids: [id], tokens: [text] } },
  };
}

function unigramTokenizer(pieces: readonly Piece[], options: SentencePieceOptions): TokenizerJson {
  if (options.byteFallback) throw new ConfigError('tokenizer: a unigram model with byte fallback is not supported');
  const unknown = pieces.findIndex(({ type }) => type === pieceTypes.unknown);
  const vocab = pieces.map(({ text, score }) => [text, score]);
  return wrap(pieces, { type: 'Unigram', unk_id: unknown, vocab, byte_fallback: false }, options);
}

function wrap(
  pieces: readonly Piece[],
  model: JsonObject,
  { addSpacePrefix, bosId }: SentencePieceOptions,
): TokenizerJson {
  const added = pieces.flatMap(({ text: content, type }, id) => {
    const isAdded = type === pieceTypes.unknown || type === pieceTypes.control || type === pieceTypes.userDefined;
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    return isAdded ? [{ id, content, ...flags, special: type !== pieceTypes.userDefined }] : [];
  });
  const replace = { type: 'Replace', pattern: { String: ' ' }, content: space };
  const bosText = bosId === undefined ? undefined : pieces[bosId]?.text;
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: {
      type: 'Sequence',
      normalizers: addSpacePrefix ? [{ type: 'Prepend', prepend: space }, replace] : [replace],
    },
    pre_tokenizer: null,
    post_processor: bosText === undefined || bosId === undefined ? null : bosProcessor(bosText, bosId),
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: space }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(addSpacePrefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model,
  };
  return parseTokenizer(tokenizer, 'SentencePiece model');
}

function mergesOf(pieces: readonly Piece[]): [string, string][] {
  const mergeable = new Map(
    pieces
      .filter(({ type }) => type === pieceTypes.normal || type === pieceTypes.userDefined)
      .map((piece) => [piece.text, piece]),
  );
  const merges: { pair: [string, string]; score: number }[] = [];
  for (const { text, score, type } of pieces) {
    if (type !== pieceTypes.normal) continue;
    const characters = Array.from(text); // code points
    for (let cut = 1; cut < characters.length; cut++) {
      const pair: [string, string] = [characters.slice(0, cut).join(''), characters.slice(cut).join('')];
      if (mergeable.has(pair[0]) && mergeable.has(pair[1])) merges.push({ pair, score });
    }
  }
  return merges.sort((a, b) => b.score - a.score).map(({ pair }) => pair);
}

interface Model {
  readonly pieces: readonly Piece[];
  readonly isUnigram: boolean;
  readonly byteFallback: boolean;
  readonly addSpacePrefix: boolean;
  readonly bosId: number;
  readonly eosId: number;
}

/** Field numbers of sentencepiece_model.proto, ModelProto: 1 pieces, 2 trainer_spec, 3 normalizer_spec. */
function parseModel(bytes: Uint8Array, fileName: string): Model {
  const fields = fieldsOf(bytes, fileName);
  const pieces = fields.filter(({ number }) => number === 1).map((field) => parsePiece(field, fileName));
  if (pieces.length === 0) throw new ConfigError(`${fileName}: no pieces; not a SentencePiece model`);
  const sub = (number: number): ProtobufField[] => {
    const found = fields.find((field) => field.number === number)?.bytes;
    return found === undefined ? [] : fieldsOf(found, fileName);
  };
  const trainer = sub(2);
  const normalizer = sub(3);
  const numberOf = (list: ProtobufField[], number: number, absent: number): number =>
    list.find((field) => field.number === number)?.varint ?? absent;
  const kind = numberOf(trainer, 3, 1); // 1 unigram, 2 BPE, 3 word, 4 character
  if (kind !== 1 && kind !== 2)
    throw new ConfigError(`${fileName}: model type ${kind} is not supported; unigram and BPE are`);
  const characterMap = normalizer.find(({ number }) => number === 2)?.bytes;
  if (characterMap !== undefined && characterMap.length > 0)
    throw new ConfigError(
      `${fileName}: it maps characters before cutting, which is not supported; use its tokenizer.json`,
    );
  return {
    pieces,
    isUnigram: kind === 1,
    byteFallback: numberOf(trainer, 35, 0) === 1,
    addSpacePrefix: numberOf(normalizer, 3, 1) === 1,
    bosId: numberOf(trainer, 41, 1),
    eosId: numberOf(trainer, 42, 2),
  };
}

/** 1 piece, 2 score, 3 type. */
function parsePiece(field: ProtobufField, fileName: string): Piece {
  const parts = fieldsOf(field.bytes ?? new Uint8Array(0), fileName);
  const find = (number: number): ProtobufField | undefined => parts.find((part) => part.number === number);
  return {
    text: new TextDecoder('utf-8', { ignoreBOM: true }).decode(find(1)?.bytes ?? new Uint8Array(0)),
    score: find(2)?.float ?? 0,
    type: find(3)?.varint ?? pieceTypes.normal,
  };
}
