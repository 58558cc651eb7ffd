/** `tpla convert` with real processes: exact conversion changes nothing, a smaller cache costs what the report says. */
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { z } from 'zod';
import { goldenFolder, tinyModel } from '../helpers/golden.ts';
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
  const own = (flag: string, value: string): string[] => (flags.includes(flag) ? [] : [flag, value]);
  const given = [...own('--calibration-tokens', '128'), ...own('--ranks', '1'), ...flags];
  const args = ['convert', stories, '--out', out, '--json', ...given];
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

test('matrices in 8-bit blocks: a smaller file, the same perplexity within their rounding', async () => {
  const flags = ['--rope-dim', '8', '--kv-rank', '24', '--keep-window', '4', '--keep-sinks', '1'];
  const [floats, blocks] = [await convert('floats', ...flags), await convert('blocks', ...flags, '--dtype', 'q8_0')];
  const bytes = (folder: string): number => statSync(join(folder, 'model.safetensors')).size;
  expect(bytes(blocks.out)).toBeLessThan(bytes(floats.out));
  expect(Math.abs(blocks.report.afterRankPpl / floats.report.afterRankPpl - 1)).toBeLessThan(0.03);
  expect(blocks.report['dtype']).toBe('q8_0');
  const { code, stderr } = await sandbox.run(['convert', stories, '--out', 'no', '--exact', '--dtype', 'q8_0']);
  expect([code, stderr]).toEqual([2, expect.stringContaining('dtype: q8_0 rounds what --exact is to keep')]);
}, 60_000);

test('the same seed gives the same bytes, and the report is in the folder', async () => {
  // Held-out text of some length: with 128 tokens the order of perplexities below is chance.
  const flags = [
    '--method',
    'published',
    '--rope-dim',
    '8',
    '--freqfold',
    '2',
    '--seed',
    '5',
    '--calibration-tokens',
    '512',
  ];
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

test('families with windows, caps, norms and experts convert by every method', async () => {
  const convertTiny = async (name: string, flag: string) => {
    const out = join(sandbox.folder, `${name}-mla`);
    const args = [
      'convert',
      tinyModel(name),
      '--out',
      out,
      '--json',
      '--calibration-tokens',
      '128',
      '--ranks',
      '2',
      flag,
    ];
    const { code, stdout, stderr } = await sandbox.run(args);
    expect(code, stderr).toBe(0);
    const { report } = reportSchema.parse(JSON.parse(stdout));
    return report.afterRankPpl / report.originalPpl;
  };
  const [exact, ...others] = await Promise.all([
    convertTiny('gemma2', '--exact'),
    convertTiny('mixtral', '--method=recipe'),
    convertTiny('mistral', '--method=published'),
  ]);
  expect(Math.abs(exact - 1)).toBeLessThan(1e-5);
  // Random models: fitted on little, a conversion still stays nearer to the source than chance (about 500) is.
  for (const ratio of others) expect(ratio).toBeLessThan(2);
});

test('a dry run predicts the result and writes nothing', async () => {
  const out = join(sandbox.folder, 'foreseen');
  const flags = ['--rope-dim', '8', '--kv-rank', '24', '--calibration-tokens', '128', '--json', '--out', out];
  const { code, stdout } = await sandbox.run(['convert', stories, ...flags, '--dry-run']);
  expect(code).toBe(0);
  const { prediction } = z.object({ prediction: z.record(z.string(), z.unknown()) }).parse(JSON.parse(stdout));
  expect(prediction).toMatchObject({
    candidates: [{ ropeDim: 8, kvRank: 24 }],
    cacheFloatsBefore: 64,
    cacheFloatsAfter: 32,
  });
  expect(sandbox.leftovers().filter((name) => name.includes('foreseen'))).toEqual([]);
  expect((await sandbox.run(['convert', stories, ...flags, '--ranks', '1'])).code).toBe(0);
  const bytes = ['model', 'tpla_rotation'].map((name) => statSync(join(out, `${name}.safetensors`)).size);
  // Headers are not counted.
  expect(Number(prediction['outputBytes']) / bytes.reduce((a, b) => a + b)).toBeGreaterThan(0.97);
  expect(Number(prediction['outputBytes'])).toBeLessThan(bytes.reduce((a, b) => a + b));
});

test('a calibration file that is none is refused before any process is started', async () => {
  const out = join(sandbox.folder, 'uncalibrated');
  const files = {
    binary: Buffer.from([0x80, 0xff]),
    zeros: Buffer.from('a\0b'),
    empty: Buffer.from(' \n'),
    short: 'ab',
  };
  const refused = async (name: string) => {
    const { code, stderr } = await sandbox.run([
      'convert',
      stories,
      '--out',
      out,
      '--calibration',
      join(sandbox.folder, name),
    ]);
    expect(code).toBe(2);
    return stderr;
  };
  for (const [name, bytes] of Object.entries(files)) writeFileSync(join(sandbox.folder, name), bytes);
  const [binary, zeros, empty, short] = await Promise.all(Object.keys(files).map(refused));
  expect(binary).toContain('binary: not valid UTF-8 at byte 0; convert it to UTF-8');
  expect(zeros).toContain('zeros holds zero bytes; it is no text, give a UTF-8 one');
  expect(empty).toContain('empty is empty; give a text to fit on');
  expect(short).toContain('calibration: short has');
  expect(sandbox.leftovers().filter((name) => name.startsWith('.'))).toEqual([]);
});

test('several calibration files are all read', async () => {
  for (const name of ['text-a', 'text-b']) writeFileSync(join(sandbox.folder, name), `The ${name} text. `.repeat(200));
  const texts = (...names: string[]) => names.flatMap((name) => ['--calibration', join(sandbox.folder, name)]);
  const flags = [
    '--out',
    join(sandbox.folder, 'dry'),
    '--calibration-tokens',
    '1024',
    '--rope-dim',
    '8',
    '--kv-rank',
    '24',
  ];
  const run = (...given: string[]) => sandbox.run(['convert', ...flags, '--dry-run', '--json', ...given, stories]);
  const both = await run(...texts('text-a', 'text-b'));
  expect(both.code, both.stderr).toBe(0);
  const lacking = await run(...texts('text-a', 'text-c'));
  expect(lacking.code).toBe(2);
  expect(lacking.stderr).toContain(`calibration: cannot read ${join(sandbox.folder, 'text-c')}`);
}, 60_000);

test('killed while it converts, it leaves nothing that looks whole, and the next run finishes and cleans up', async () => {
  const out = join(sandbox.folder, 'killed');
  const args = ['convert', stories, '--out', out, '--calibration-tokens', '512', '--ranks', '1', '--seed', '5'];
  const running = sandbox.start([...args, '--rope-dim', '8', '--freqfold', '2', '--method', 'published']);
  const part = () => readdirSync(sandbox.folder).find((name) => name.startsWith('.killed.part-'));
  await vi.waitUntil(() => part() !== undefined, { timeout: 20_000, interval: 5 });
  running.child.kill('SIGKILL');
  await running.finished;
  expect(existsSync(out)).toBe(false);
  expect(part()).toBeDefined();
  const again = await sandbox.run([...args, '--rope-dim', '8', '--freqfold', '2', '--method', 'published']);
  expect(again.code, again.stderr).toBe(0);
  expect(part()).toBeUndefined();
  // The same flags as in the test above: the same bytes, killed or not.
  const first = join(sandbox.folder, 'first');
  for (const file of ['config.json', 'model.safetensors'])
    expect(readFileSync(join(out, file)).equals(readFileSync(join(first, file))), file).toBe(true);
});

test('killed and then interrupted behind refitted layers, it goes on and gives the same bytes', async () => {
  const flags = ['--rope-dim', '8', '--kv-rank', '20', '--seed', '5', '--calibration-tokens', '256'];
  const out = join(sandbox.folder, 'cut');
  const args = ['convert', stories, '--out', out, ...flags, '--ranks'];
  const part = () => readdirSync(sandbox.folder).find((file) => file.startsWith('.cut.part-'));
  const finished = (): number => {
    const state = join(sandbox.folder, part() ?? '', 'scratch', 'state.json');
    if (part() === undefined || !existsSync(state)) return 0;
    const { losses } = z
      .looseObject({ losses: z.array(z.unknown()).default([]) })
      .parse(JSON.parse(readFileSync(state, 'utf8')));
    return losses.length;
  };
  const whole = convert('whole', ...flags);
  const cut = async (ranks: string, layers: number, signal: 'SIGKILL' | 'SIGINT') => {
    const running = sandbox.start([...args, ranks]);
    await vi.waitUntil(() => finished() >= layers, { timeout: 60_000, interval: 2 });
    running.child.kill(signal);
    await running.finished;
    expect(existsSync(out)).toBe(false);
    expect(part()).toBeDefined();
  };
  await cut('1', 1, 'SIGKILL');
  await cut('2', 1 + finished(), 'SIGINT');
  const again = await sandbox.run([...args, '1']);
  expect(again.code, again.stderr).toBe(0);
  expect(again.stderr).toMatch(/an earlier run of this conversion finished [2-5] of 5 layers: going on/);
  for (const file of ['config.json', 'model.safetensors', 'tpla_rotation.safetensors'])
    expect(readFileSync(join(out, file)).equals(readFileSync(join((await whole).out, file))), file).toBe(true);
  expect(part()).toBeUndefined();
}, 180_000);

test('the recipe gives the same bytes on 1 and 2 ranks, and steps can be left out', { timeout: 120_000 }, async () => {
  const flags = ['--rope-dim', '8', '--kv-rank', '20', '--seed', '5', '--calibration-tokens', '1024'];
  const [one, two] = await Promise.all([convert('rank1', ...flags), convert('rank2', ...flags, '--ranks', '2')]);
  const weights = ({ out }: { out: string }) => readFileSync(join(out, 'model.safetensors'));
  expect(weights(one).equals(weights(two))).toBe(true);
  const without = await convert('oneshot', ...flags, '--without', 'refit', '--without', 'phase', '--explain');
  expect(without.report).toMatchObject({ without: ['refit', 'phase'] });
  expect(weights(without).equals(weights(one))).toBe(false);
  expect(one.report.afterRankPpl).toBeLessThan(without.report.afterRankPpl);
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
