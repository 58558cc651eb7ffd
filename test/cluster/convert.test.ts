/** `tpla convert` with real processes: exact conversion changes nothing, a smaller cache costs what the report says. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { z } from 'zod';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';

const stories = join(goldenFolder, 'stories260K');
const reportSchema = z.object({
  report: z.looseObject({
    originalPpl: z.number(),
    afterRopePpl: z.number(),
    afterRankPpl: z.number(),
    cacheFloatsBefore: z.number(),
    cacheFloatsAfter: z.number(),
    ropeDim: z.number(),
    kvRank: z.number(),
    freqfold: z.number(),
    seed: z.number(),
    calibrationHash: z.string().regex(/^[0-9a-f]{64}$/),
    seconds: z.number().positive(),
  }),
});

let sandbox: Sandbox;
beforeAll(() => {
  sandbox = new Sandbox();
});
afterAll(() => sandbox[Symbol.dispose]());

async function convert(name: string, ...flags: string[]) {
  const out = join(sandbox.folder, name);
  const args = ['convert', stories, '--out', out, '--json', '--calibration-tokens', '128', '--ranks', '1', ...flags];
  const { code, stdout, stderr } = await sandbox.run(args);
  expect(stderr).not.toContain('bug');
  expect(code, stderr).toBe(0);
  return { out, report: reportSchema.parse(JSON.parse(stdout)).report };
}

test('--exact keeps perplexity and greedy text', async () => {
  const { out, report } = await convert('exact', '--exact', '--ranks', '2');
  expect(report).toMatchObject({ cacheFloatsBefore: 64, cacheFloatsAfter: 64, ropeDim: 32, kvRank: 32, freqfold: 1 });
  expect(Math.abs(report.afterRankPpl / report.originalPpl - 1)).toBeLessThan(1e-5);
  const greedy = async (model: string) =>
    (await sandbox.run(['run', '--raw', 'Once', '--model', model, '--ranks', '1', '--max-tokens', '60'])).stdout;
  expect(await greedy(out)).toBe(await greedy(stories));
});

test('the same seed gives the same bytes, and the report is in the folder', async () => {
  const flags = ['--method', 'published', '--rope-dim', '8', '--freqfold', '2', '--seed', '5'];
  const [first, again] = await Promise.all([convert('first', ...flags), convert('again', ...flags)]);
  for (const file of ['config.json', 'model.safetensors', 'tpla_rotation.safetensors', 'tokenizer.json'])
    expect(readFileSync(join(first.out, file)).equals(readFileSync(join(again.out, file))), file).toBe(true);
  const { report } = first;
  expect(JSON.parse(readFileSync(join(first.out, 'conversion_report.json'), 'utf8'))).toEqual(report);
  expect(report).toMatchObject({ cacheFloatsAfter: 32, ropeDim: 8, kvRank: 24, freqfold: 2, seed: 5 });
  expect(report.originalPpl).toBeLessThan(report.afterRopePpl);
  expect(report.afterRopePpl).toBeLessThan(report.afterRankPpl);
  expect(sandbox.leftovers().filter((name) => name.startsWith('.'))).toEqual([]);
});

test('the recipe loses less than the published method, and the report says which it was', async () => {
  const [recipe, published] = await Promise.all([
    convert('recipe', '--seed', '5', '--ranks', '2'),
    convert('published', '--seed', '5', '--ranks', '2', '--method', 'published'),
  ]);
  expect(recipe.report).toMatchObject({ method: 'recipe', cacheFloatsAfter: 32, freqfold: 1, balance: null });
  expect(published.report).toMatchObject({ method: 'published', cacheFloatsAfter: 32 });
  expect(recipe.report.calibrationHash).toBe(published.report.calibrationHash);
  expect(recipe.report.originalPpl).toBe(published.report.originalPpl);
  expect(recipe.report.afterRankPpl).toBeLessThan(published.report.afterRankPpl);
  expect(recipe.report.afterRopePpl).toBeLessThan(published.report.afterRopePpl);
});

test('an occupied folder, a converted source and wrong flags are refused', async () => {
  const occupied = join(sandbox.folder, 'occupied');
  mkdirSync(occupied);
  writeFileSync(join(occupied, 'notes.txt'), 'mine');
  const refused = async (...args: string[]) => {
    const { code, stderr } = await sandbox.run(['convert', ...args]);
    expect(code).toBe(2);
    return stderr;
  };
  const [inTheWay, latent, fold, balance] = await Promise.all([
    refused(stories, '--out', occupied, '--force'),
    refused(join(sandbox.folder, 'exact'), '--out', `${occupied}2`),
    refused(stories, '--out', `${occupied}2`, '--method', 'published', '--freqfold', '3'),
    refused(stories, '--out', `${occupied}2`, '--balance', 'much'),
  ]);
  expect(inTheWay).toContain(`out: ${occupied} holds files but no converted checkpoint`);
  expect(latent).toContain('convert: this tpla_mla model has latent attention already (kv_lora_rank 32)');
  expect(fold).toContain('freqfold: expected a divisor of the 4 rotary frequencies of a head, got 3');
  expect(balance).toContain('--balance: expected auto or a number, got "much"');
});
