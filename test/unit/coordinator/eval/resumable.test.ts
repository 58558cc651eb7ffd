/** Interrupted work goes on behind the last whole result, and never under other settings. */
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { z } from 'zod';
import { ResumableWork } from '../../../../coordinator/eval/resumable.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'resumable-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const items = [3, 5, 7, 11];

/** Squares of the items, each noted in `done`; the item at `failAt` fails. */
async function run(out: string | undefined, done: number[], failAt = -1, settings: unknown = { a: 1 }) {
  const lines: string[] = [];
  const work = await ResumableWork.open(out, settings, (line) => lines.push(line));
  const results = await work.run({
    label: 'test',
    unit: 'items',
    items,
    schema: z.number(),
    work: async (item, i) => {
      if (i === failAt) throw new Error('interrupted');
      done.push(item);
      return await Promise.resolve(item * item);
    },
  });
  await work.finish({ results });
  return { results, lines };
}

test('goes on where it was, also behind a half-written line, and leaves the report alone', async () => {
  const out = join(folder, 'report.json');
  const done: number[] = [];
  await expect(run(out, done, 2)).rejects.toThrow('interrupted');
  appendFileSync(`${out}.state`, '4');
  const { results, lines } = await run(out, done);
  expect(results).toEqual([9, 25, 49, 121]);
  expect(done).toEqual(items);
  expect(lines).toEqual([`going on behind 2 results of ${out}.state`]);
  expect(JSON.parse(readFileSync(out, 'utf8'))).toEqual({ results });
  expect(existsSync(`${out}.state`)).toBe(false);
});

test('refuses a state of other settings and a damaged one', async () => {
  const out = join(folder, 'report.json');
  await expect(run(out, [], 1)).rejects.toThrow('interrupted');
  await expect(run(out, [], -1, { a: 2 })).rejects.toThrow('belongs to a run with other settings');
  appendFileSync(`${out}.state`, 'nonsense\n');
  await expect(run(out, [])).rejects.toThrow('line 3 is damaged');
});

test('names a folder that is not there', async () => {
  await expect(run(join(folder, 'no', 'report.json'), [])).rejects.toThrow('cannot be written');
});

test('without a file nothing is kept', async () => {
  expect((await run(undefined, [])).results).toEqual([9, 25, 49, 121]);
});
