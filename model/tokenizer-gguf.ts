/**
 * The tokenizer in GGUF metadata, as the Hugging Face files would describe it. Knows byte-level BPE (`gpt2`) with the
 * cutting rules of pre-tokenizers.ts, and SentencePiece vocabularies (`llama`); refuses the others by name.
 */
import { z } from 'zod';
import { ConfigError } from '../config/errors.ts';
import { byteLevelTokenizer } from './byte-level.ts';
import { openGguf } from './gguf.ts';
import { cutRuleOf } from './pre-tokenizers.ts';
import { pieceTypes, sentencePieceTokenizer, type Piece } from './sentencepiece.ts';
import type { TokenizerFiles, TokenizerJson } from './tokenizer-json.ts';

const id = z.number().int().min(0).optional();
const schema = z.object({
  model: z.string(),
  pre: z.string().default('default'),
  tokens: z.array(z.string()),
  token_type: z.array(z.number()).optional(),
  scores: z.array(z.number()).optional(),
  merges: z.array(z.string()).default([]),
  bos_token_id: id,
  eos_token_id: id,
  eot_token_id: id,
  eom_token_id: id,
  add_bos_token: z.boolean().optional(),
  add_space_prefix: z.boolean().default(true),
});
type Keys = z.infer<typeof schema>;

/**
 * Texts of control tokens that end a turn. GGUF names one end token, models have several; llama.cpp, too, finds the
 * others by their text.
 */
const endTexts = new Set([
  '<|eot_id|>',
  '<|eom_id|>',
  '<|end_of_text|>',
  '<|endoftext|>',
  '<|im_end|>',
  '<|end|>',
  '<end_of_turn>',
]);

/** @throws ConfigError when the file has no tokenizer, or one of a kind that is not supported */
export async function ggufTokenizerFiles(path: string): Promise<TokenizerFiles> {
  await using file = await openGguf(path);
  const prefix = 'tokenizer.ggml.';
  const own = [...file.metadata]
    .filter(([key]) => key.startsWith(prefix))
    .map(([key, value]) => [key.slice(prefix.length), value]);
  const parsed = schema.safeParse(Object.fromEntries(own));
  if (!parsed.success) throw new ConfigError(`${path}: metadata ${prefix}: ${z.prettifyError(parsed.error)}`);
  const keys = parsed.data;
  const { tokenizer, addsBos } = tokenizerOf(keys, path);
  const template = file.metadata.get('tokenizer.chat_template');
  const typeOf = (index: number): number => keys.token_type?.[index] ?? pieceTypes.normal;
  const byText = keys.tokens.flatMap((text, index) =>
    typeOf(index) === pieceTypes.control && endTexts.has(text) ? [index] : [],
  );
  const eos = [keys.eos_token_id, keys.eot_token_id, keys.eom_token_id, ...byText].filter(
    (value) => value !== undefined,
  );
  return {
    source: path,
    tokenizer,
    config: {
      tokenizer_class: 'PreTrainedTokenizerFast',
      ...tokenEntry('bos_token', keys.tokens, keys.bos_token_id),
      ...tokenEntry('eos_token', keys.tokens, keys.eos_token_id),
      add_bos_token: addsBos,
      clean_up_tokenization_spaces: false,
    },
    bosId: keys.bos_token_id,
    eosIds: [...new Set(eos)].sort((a, b) => a - b),
    chatTemplate: typeof template === 'string' ? template : undefined,
  };
}

function tokenizerOf(keys: Keys, path: string): { tokenizer: TokenizerJson; addsBos: boolean } {
  switch (keys.model) {
    case 'llama': {
      const addsBos = keys.add_bos_token ?? true;
      const pieces = piecesOf(keys, path);
      const options = {
        addSpacePrefix: keys.add_space_prefix,
        byteFallback: true,
        bosId: addsBos ? keys.bos_token_id : undefined,
      };
      return { tokenizer: sentencePieceTokenizer(pieces, options), addsBos };
    }
    case 'gpt2':
      return byteLevel(keys, path);
    default:
      throw new ConfigError(`${path}: tokenizer.ggml.model '${keys.model}' is not supported; gpt2 and llama are`);
  }
}

function byteLevel(keys: Keys, path: string): { tokenizer: TokenizerJson; addsBos: boolean } {
  const rule = cutRuleOf(keys.pre, `${path}: tokenizer.ggml.pre`);
  const addsBos = keys.add_bos_token ?? rule.addsBos ?? false;
  const bosText = addsBos && keys.bos_token_id !== undefined ? keys.tokens[keys.bos_token_id] : undefined;
  const added = keys.tokens.flatMap((content, index) => {
    const type = keys.token_type?.[index] ?? pieceTypes.normal;
    const isAdded = type === pieceTypes.control || type === pieceTypes.userDefined || type === pieceTypes.unknown;
    return isAdded ? [{ id: index, content, special: type !== pieceTypes.userDefined }] : [];
  });
  const vocab = Object.fromEntries(keys.tokens.map((text, index) => [text, index]));
  const bos = bosText === undefined ? undefined : { text: bosText, id: keys.bos_token_id ?? 0 };
  return { tokenizer: byteLevelTokenizer({ vocab, merges: keys.merges, added, rule, bos }, path), addsBos };
}

function piecesOf({ tokens, scores, token_type: types }: Keys, path: string): Piece[] {
  if (scores?.length !== tokens.length || types?.length !== tokens.length)
    throw new ConfigError(
      `${path}: ${tokens.length} tokens, ${scores?.length ?? 0} scores, ${types?.length ?? 0} types; expected the same number`,
    );
  return tokens.map((text, index) => ({ text, score: scores[index] ?? 0, type: types[index] ?? pieceTypes.normal }));
}

function tokenEntry(key: string, tokens: readonly string[], index: number | undefined): Record<string, string> {
  const text = index === undefined ? undefined : tokens[index];
  return text === undefined ? {} : { [key]: text };
}
