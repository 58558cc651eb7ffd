/** `tpla bench` with real processes, on random weights: the keys of its document, its files, its refusals. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { z } from 'zod';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';

const config = join(goldenFolder, 'tiny/llama-gqa/config.json');

const positive = z.number().positive();
const documentSchema = z.object({
  rows: z.array(
    z.object({
      scheme: z.string(),
      ranks: z.number(),
      context: z.number(),
      batch: z.number(),
      prefillTokensPerSecond: positive,
      decodeTokensPerSecond: positive,
      ttftMs: positive,
      cacheBytesPerTokenPerRank: positive,
      bytesPerTokenPerRank: z.number(),
      computeMs: positive,
      waitMs: z.number(),
      speedUp: positive,
      perRank: z.array(z.object({ rank: z.number(), computeMs: positive })),
    }),
  ),
  skipped: z.array(z.object({ scheme: z.string(), ranks: z.number(), reason: z.string() })),
  machine: z.object({ cpu: z.string(), cores: positive }),
  versions: z.object({ tpla: z.string(), node: z.string() }),
  commit: z.string().nullable(),
});

let sandbox: Sandbox;
beforeEach(() => {
  sandbox = new Sandbox();
});
afterEach(() => sandbox[Symbol.dispose]());

test('measures ranks and contexts, leaves out what is impossible, writes page and table', async () => {
  const [html, markdown] = [join(sandbox.folder, 'bench.html'), join(sandbox.folder, 'bench.md')];
  const ran = await sandbox.run([
    ...['bench', '--dummy', config, '--layers', '1', '--ranks', '1,2', '--scheme', 'gqa,mla', '--context', '8,40'],
    ...['--batch', '1,2', '--decode', '2', '--repeat', '1', '--json', '--html', html, '--markdown', markdown],
  ]);
  expect(ran.stderr).not.toContain('tpla:');
  expect(ran.code).toBe(0);
  const document = documentSchema.parse(JSON.parse(ran.stdout));
  expect(document.rows.map(({ ranks, context, batch }) => [ranks, context, batch])).toEqual([
    [1, 8, 1],
    [1, 8, 2],
    [1, 40, 1],
    [1, 40, 2],
    [2, 8, 1],
    [2, 8, 2],
    [2, 40, 1],
    [2, 40, 2],
  ]);
  expect(document.rows.at(-1)!.perRank.map(({ rank }) => rank)).toEqual([0, 1]);
  expect(document.rows.at(-1)!.bytesPerTokenPerRank).toBeGreaterThan(0);
  expect(document.skipped).toEqual([{ scheme: 'mla', ranks: 2, reason: expect.stringContaining('mla') }]);
  expect(readFileSync(html, 'utf8')).toMatch(/^<!doctype html>/);
  expect(readFileSync(markdown, 'utf8')).toContain('| gqa | 2 | 40 | 2 |');
});

test('refuses lists that are none, and flags that contradict each other', async () => {
  const refusals: [string[], string][] = [
    [['--ranks', '1,x'], 'tpla: --ranks: expected whole numbers from 1 to 64 by commas, got 1,x\n'],
    [['--scheme', 'gqa,ring'], 'tpla: --scheme: expected some of '],
    [['--layers', '2'], 'tpla: --layers: only with --dummy, a checkpoint has all its layers\n'],
    [['--dummy', config, '--model', 'default'], 'tpla: --dummy and --model: give one of them\n'],
  ];
  const all = await Promise.all(refusals.map(([args]) => sandbox.run(['bench', ...args])));
  all.forEach((ran, i) => {
    expect(ran.stderr).toContain(refusals[i]![1]);
    expect(ran.code).toBe(2);
  });
});
