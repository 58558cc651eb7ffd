/**
 * SmolLM2-135M converted to MLA, on real ranks: the exact conversion against its source, and both conversions on several
 * ranks against one, under every scheme that cuts the latent.
 */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { greedy, startCluster } from '../helpers/cluster.ts';
import { klDivergence } from '../helpers/divergence.ts';
import { Sandbox } from '../helpers/program.ts';
import { realModelPath } from '../helpers/real-model.ts';

const path = realModelPath() ?? '';
const sandbox = new Sandbox();
const exactFolder = join(sandbox.folder, 'exact');
const halfFolder = join(sandbox.folder, 'half');
// "The capital of France is", "Once upon a time, in a small village by the sea," in the model's ids.
const village = [6403, 2769, 253, 655, 28, 281, 253, 1165, 9067, 411, 260, 6064, 28];
// The last one is longer than the window that a conversion keeps: most of it is read from latents.
const prompts = [[504, 3575, 282, 4649, 314], village, Array.from({ length: 10 }, () => village).flat()];
const steps = 16;
const served = { weights: 'f32', cacheType: 'f32', context: 256 };

describe.skipIf(path === '')('converted SmolLM2', () => {
  beforeAll(async () => {
    await tpla('convert', path, '--out', exactFolder, '--exact');
    await tpla(
      'convert',
      path,
      '--out',
      halfFolder,
      '--rope-dim',
      '48',
      '--kv-rank',
      '144',
      '--calibration-tokens',
      '2048',
    );
  });
  afterAll(() => sandbox[Symbol.dispose]());

  test('--exact writes the text of its source, with its logits', async () => {
    await using source = await startCluster(path, { ...served, scheme: 'gqa', ranks: 1 });
    await using exact = await startCluster(exactFolder, { ...served, scheme: 'mla', ranks: 2 });
    for (const prompt of prompts)
      expectSame(await greedy(source.cluster, prompt, steps), await greedy(exact.cluster, prompt, steps));
  });

  test.each([2, 3, 4, 5])('--exact on %i ranks: same text, KL below 1e-5 per token', async (ranks) => {
    await compareRanks(exactFolder, 'mla', ranks);
  });

  test.each([
    ['mla', 2],
    ['mla', 3],
    ['mla', 5],
    ['tpla-exact', 2],
    ['tpla-exact', 3],
    ['tpla-exact', 4],
    ['dcp', 2],
    ['dcp', 3],
    ['dcp', 5],
  ] as const)('half the cache, %s on %i ranks: same text, KL below 1e-5 per token', async (scheme, ranks) => {
    await compareRanks(halfFolder, scheme, ranks);
  });

  test('tpla with one latent group is mla', async () => {
    await using mla = await startCluster(halfFolder, { ...served, scheme: 'mla', ranks: 2 });
    await using tpla = await startCluster(halfFolder, { ...served, scheme: 'tpla', latentGroups: 1, ranks: 2 });
    for (const prompt of prompts)
      expectSame(await greedy(mla.cluster, prompt, steps), await greedy(tpla.cluster, prompt, steps));
  });

  test('each of 2 ranks stays below 0.6 of the weights and 150 MB, loading and a default context included', async () => {
    const run = await tpla('run', '--model', halfFolder, '--scheme', 'tpla', '--max-tokens', '8', '--json', 'Hello');
    const { perRank } = z.object({ perRank: z.array(z.object({ peakRssBytes: z.number() })) }).parse(JSON.parse(run));
    expect(perRank).toHaveLength(2);
    const limit = 0.6 * statSync(join(halfFolder, 'model.safetensors')).size + 150e6;
    for (const { peakRssBytes } of perRank) expect(peakRssBytes).toBeLessThan(limit);
  });
});

async function tpla(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await sandbox.run(args);
  expect(code, stderr).toBe(0);
  return stdout;
}

async function compareRanks(model: string, scheme: string, ranks: number): Promise<void> {
  await using one = await startCluster(model, { ...served, scheme: 'mla', ranks: 1 });
  await using several = await startCluster(model, { ...served, scheme, ranks });
  for (const prompt of prompts)
    expectSame(await greedy(one.cluster, prompt, steps), await greedy(several.cluster, prompt, steps));
}

type Greedy = Awaited<ReturnType<typeof greedy>>;

function expectSame(expected: Greedy, actual: Greedy): void {
  expect(actual.ids).toEqual(expected.ids);
  actual.logits.forEach((logits, step) => expect(klDivergence(expected.logits[step]!, logits)).toBeLessThan(1e-5));
}
