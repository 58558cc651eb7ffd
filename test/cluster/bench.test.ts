/** `tpla bench` with real processes, on random weights: the keys of its document, its files, its refusals. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { z } from 'zod';
import { chromiumPath, launchChromium, openPage, seriousFindings } from '../helpers/browser.ts';
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
  const sizes = '--layers 1 --ranks 1,2 --scheme gqa,mla --context 8,40 --batch 1,2 --decode 2 --repeat 1 --json';
  const files = ['--dummy', config, '--html', html, '--markdown', markdown];
  const ran = await sandbox.run(['bench', ...sizes.split(' '), ...files]);
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
  if (chromiumPath !== undefined) await checkPage(html, document.rows.length);
  expect(readFileSync(html, 'utf8')).toMatch(/^<!doctype html>/);
  expect(readFileSync(markdown, 'utf8')).toContain('| gqa | 2 | 40 | 2 |');
});

test('times decode alone over a context that was never computed, in every scheme', async () => {
  const mla = join(goldenFolder, 'tiny/kimi-k2-like/config.json');
  const sizes =
    '--layers 1 --ranks 2 --scheme mla,tpla,dcp,tpla-exact --context 300 --decode 2 --repeat 1 --skip-prefill --json';
  const ran = await sandbox.run(['bench', ...sizes.split(' '), '--dummy', mla]);
  expect(ran.code, ran.stderr).toBe(0);
  const rows = z
    .array(z.object({ scheme: z.string(), prefillTokensPerSecond: z.literal(0), decodeTokensPerSecond: positive }))
    .parse((JSON.parse(ran.stdout) as { rows: unknown }).rows);
  expect(rows.map(({ scheme }) => scheme)).toEqual(['mla', 'tpla', 'dcp', 'tpla-exact']);
});

test('refuses lists that are none, and flags that contradict each other', async () => {
  const refusals: [string[], string][] = [
    [['--ranks', '1,x'], 'tpla: --ranks: expected whole numbers from 1 to 64 by commas, got 1,x\n'],
    [['--scheme', 'gqa,ring'], 'tpla: --scheme: expected some of '],
    [['--layers', '2'], 'tpla: --layers: only with --dummy, a checkpoint has all its layers\n'],
    [['--skip-prefill'], 'tpla: --skip-prefill: only with --dummy, a checkpoint would write nonsense\n'],
    [['--dummy', config, '--model', 'default'], 'tpla: --dummy and --model: give one of them\n'],
  ];
  const all = await Promise.all(refusals.map(([args]) => sandbox.run(['bench', ...args])));
  all.forEach((ran, i) => {
    expect(ran.stderr).toContain(refusals[i]![1]);
    expect(ran.code).toBe(2);
  });
});

/** The page in a real browser, in both colour schemes: a row for each measurement, charts whose bars stand inside them. */
async function checkPage(file: string, rows: number): Promise<void> {
  const url = pathToFileURL(file).href;
  const browser = await launchChromium();
  try {
    for (const colorScheme of ['light', 'dark'] as const) {
      const { page, errors } = await openPage(browser, url, url, { colorScheme });
      expect(await page.locator('tbody tr').count()).toBe(rows);
      expect(await page.locator('tbody tr').last().locator('td').first().innerText()).toBe('gqa');
      // Decode, prefill and where the time goes, for 2 contexts x 2 batches; the cache once.
      expect(await page.locator('figure').count()).toBe(13);
      for (const figure of await page.locator('figure').all()) {
        expect(await figure.locator('figcaption').innerText()).toMatch(/, (tokens\/s|ms|bytes)$/);
        const frame = await figure.locator('svg').boundingBox();
        const bars = await figure.locator('rect').all();
        expect(bars.length).toBeGreaterThanOrEqual(2);
        const heights = [];
        for (const bar of bars) {
          const box = await bar.boundingBox();
          expect(box!.y).toBeGreaterThanOrEqual(frame!.y);
          expect(box!.y + box!.height).toBeLessThanOrEqual(frame!.y + frame!.height);
          heights.push(box!.height);
        }
        // How high depends on the spread of a busy machine; a bar that was drawn at all is seen.
        expect(Math.max(...heights)).toBeGreaterThan(5);
      }
      expect(await page.content()).not.toMatch(/NaN|undefined|Infinity/);
      expect(await seriousFindings(page)).toEqual([]);
      expect(errors).toEqual([]);
      await page.close();
    }
  } finally {
    await browser.close();
  }
}
