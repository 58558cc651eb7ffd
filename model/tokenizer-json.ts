/**
 * The shape of a tokenizer.json, the format that describes every tokenizer inside this program, and of the facts that
 * come with it. No file is read here; tokenizer-files.ts finds and reads them.
 */
import { z } from 'zod';
import { ConfigError } from '../config/errors.ts';

export type JsonObject = Readonly<Record<string, unknown>>;

/** Above every id, so that a table over ids stays small. */
const maxId = 1 << 24;
const id = z.number().int().min(0).max(maxId);
const part = z.looseObject({ type: z.string() });

/** What every tokenizer.json must have; the parts are checked by the library that runs them. */
const tokenizerSchema = z.looseObject({
  model: z.looseObject({
    type: z.string().optional(),
    vocab: z.union([
      z.custom<Readonly<Record<string, number>>>(isVocab, `vocab: every token needs an id, 0 to ${maxId}`),
      z.custom<readonly (readonly [string, number])[]>(isScoredVocab, 'vocab: expected [token, score] pairs'),
    ]),
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

/** What z.record and z.array would check, in a tenth of their time: there are 150,000 tokens. */
export function isVocab(value: unknown): value is Readonly<Record<string, number>> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  return Object.values(value).every((at) => Number.isInteger(at) && at >= 0 && at <= maxId);
}

function isScoredVocab(value: unknown): boolean {
  return (
    Array.isArray(value) &&
    value.every(
      (entry) =>
        Array.isArray(entry) && entry.length === 2 && typeof entry[0] === 'string' && typeof entry[1] === 'number',
    )
  );
}

/** Token texts by id; undefined where an id is not used. */
export function tokenTexts({ model, added_tokens: added }: TokenizerJson): (string | undefined)[] {
  const entries: [string, number][] = Array.isArray(model.vocab)
    ? model.vocab.map(([text], index) => [text, index])
    : Object.entries(model.vocab);
  for (const { id: index, content } of added) entries.push([content, index]);
  let length = 0;
  for (const [, index] of entries) length = Math.max(length, index + 1);
  // Filled in no order, a table is ten times as fast when it begins at full length; ids far apart must not make it huge.
  const isDense = length < 8 * entries.length + 100_000;
  const texts: (string | undefined)[] = isDense ? new Array<undefined>(length).fill(undefined) : [];
  for (const [text, index] of entries) texts[index] = text;
  return texts;
}
