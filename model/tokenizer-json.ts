/**
 * The shape of a tokenizer.json, the format that describes every tokenizer inside this program, and of the facts that
 * come with it. No file is read here; tokenizer-files.ts finds and reads them.
 */
import { z } from 'zod';
import { ConfigError } from '../config/errors.ts';

export type JsonObject = Readonly<Record<string, unknown>>;

const id = z
  .number()
  .int()
  .min(0)
  .max(1 << 24);
const part = z.looseObject({ type: z.string() });

/** What every tokenizer.json must have; the parts are checked by the library that runs them. */
const tokenizerSchema = z.looseObject({
  model: z.looseObject({
    type: z.string().optional(),
    vocab: z.union([z.record(z.string(), id), z.array(z.tuple([z.string(), z.number()]))]),
  }),
  added_tokens: z.array(z.looseObject({ id, content: z.string(), special: z.boolean().default(false) })).default([]),
  normalizer: part.nullable().default(null),
  pre_tokenizer: part.nullable().default(null),
  post_processor: part.nullable().default(null),
  decoder: part.nullable().default(null),
});
export type TokenizerJson = z.infer<typeof tokenizerSchema>;

export interface TokenizerFiles {
  /** For messages. */
  readonly source: string;
  readonly tokenizer: TokenizerJson;
  /** tokenizer_config.json without its chat template. */
  readonly config: JsonObject;
  readonly bosId: number | undefined;
  readonly eosIds: readonly number[];
  readonly chatTemplate: string | undefined;
}

/** @throws ConfigError when the value has not the shape of a tokenizer.json */
export function parseTokenizer(value: unknown, where: string): TokenizerJson {
  const parsed = tokenizerSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new ConfigError(`${where}: not a tokenizer.json: ${z.prettifyError(parsed.error)}`);
}

/** Token texts by id; undefined where an id is not used. */
export function tokenTexts({ model, added_tokens: added }: TokenizerJson): (string | undefined)[] {
  const texts: (string | undefined)[] = [];
  if (Array.isArray(model.vocab)) model.vocab.forEach(([text], index) => (texts[index] = text));
  else for (const [text, index] of Object.entries(model.vocab)) texts[index] = text;
  for (const { id: index, content } of added) texts[index] = content;
  return texts;
}
