/** Items of a test from a JSONL file: one JSON object a line, every line checked before anything runs. */
import { z } from 'zod';
import { ConfigError, messageOf } from '../../config/errors.ts';
import { readGivenText } from '../text.ts';

/** @throws ConfigError naming the line that is no such object */
export async function readItems<Item>(path: string, schema: z.ZodType<Item>): Promise<Item[]> {
  const text = await readGivenText(path, '--items');
  const items = text
    .split('\n')
    .flatMap((line, i) => (line.trim() === '' ? [] : [parseItem(line, `${path}:${i + 1}`, schema)]));
  if (items.length > 0) return items;
  throw new ConfigError(`--items ${path}: has no items; expected one JSON object a line`);
}

/** The first `most` items of each task; 0: all. */
export function limitPerTask<Item extends { readonly task: string }>(items: readonly Item[], most: number): Item[] {
  const seen = new Map<string, number>();
  return items.filter(({ task }) => {
    const count = (seen.get(task) ?? 0) + 1;
    seen.set(task, count);
    return most === 0 || count <= most;
  });
}

function parseItem<Item>(line: string, where: string, schema: z.ZodType<Item>): Item {
  let raw: unknown;
  try {
    raw = JSON.parse(line);
  } catch (cause) {
    throw new ConfigError(`${where}: not valid JSON (${messageOf(cause)})`, { cause });
  }
  const result = schema.safeParse(raw);
  if (result.success) return result.data;
  throw new ConfigError(`${where}: ${z.prettifyError(result.error).replaceAll(/\s*\n\s*/g, ' ')}`);
}
