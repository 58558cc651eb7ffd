/** Scheme tpla with columns that every latent group keeps: the cache stays as large, prompts stay exact. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { divergences } from '../helpers/divergence.ts';
import { startLocalRanks, type LocalRanks } from '../helpers/local-ranks.ts';
import { seededRandom } from '../helpers/random.ts';
import { tinyMla, tinyVocab, writeTinyMla } from '../helpers/tiny-mla.ts';
import { EXACT_DIVERGENCE } from '../helpers/tolerances.ts';

const next = seededRandom(71);
const tokens = Array.from({ length: 50 }, () => Math.floor(next() * tinyVocab));

let model: Awaited<ReturnType<typeof writeTinyMla>>;
beforeAll(async () => (model = await writeTinyMla()));
afterAll(() => model[Symbol.asyncDispose]());

const start = (path: string, latentOverlap: number, latentGroups = 2): Promise<LocalRanks> =>
  startLocalRanks(path, latentGroups, { backend: 'ggml', scheme: 'tpla', latentGroups, latentOverlap });

async function run(
  ranks: LocalRanks,
  phase: 'prefill' | 'decode',
  from = 0,
  to = tokens.length,
): Promise<Float32Array> {
  const sequences = [{ slot: 0, start: from, tokens: tokens.slice(from, to) }];
  return await ranks.logits({ phase, sequences, want: { kind: 'all' } });
}

/** W_UK and W_UV of a tiny model read nothing of the latent columns from `kept` on. */
async function forgetColumns(path: string, kept: number): Promise<void> {
  const file = join(path, 'model.safetensors');
  const bytes = await readFile(file);
  const headerEnd = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, headerEnd)) as Record<string, { data_offsets: [number, number] }>;
  for (const [name, tensor] of Object.entries(header))
    if (name.endsWith('kv_b_proj.weight'))
      for (let at = tensor.data_offsets[0], i = 0; at < tensor.data_offsets[1]; at += 4, i++)
        if (i % tinyMla.latentDim >= kept) bytes.writeFloatLE(0, headerEnd + at);
  await writeFile(file, bytes);
}

test.each([2, 3])(
  '%i groups that share all they keep are exact on a model that reads no other column',
  async (groups) => {
    await using short = await writeTinyMla();
    const kept = tinyMla.latentDim / groups;
    await forgetColumns(short.path, kept);
    await using one = await startLocalRanks(short.path, 1, { backend: 'ggml', scheme: 'mla' });
    const expected = await run(one, 'prefill');
    await using ranks = await start(short.path, kept, groups);
    expect(Math.max(...divergences(await run(ranks, 'decode'), expected, tinyVocab))).toBeLessThan(EXACT_DIVERGENCE);
  },
);

test('a prompt is exact, and a block is decoded as its tokens one by one', async () => {
  await using one = await startLocalRanks(model.path, 1, { backend: 'ggml', scheme: 'mla' });
  await using ranks = await start(model.path, 5);
  const exact = await run(one, 'prefill');
  expect(Math.max(...divergences(await run(ranks, 'prefill'), exact, tinyVocab))).toBeLessThan(EXACT_DIVERGENCE);
  const block = await run(ranks, 'decode', 30);
  for (let i = 30; i < tokens.length; i++) {
    const row = block.subarray((i - 30) * tinyVocab, (i - 29) * tinyVocab);
    expect(divergences(await run(ranks, 'decode', i, i + 1), row, tinyVocab)[0]).toBeLessThan(EXACT_DIVERGENCE);
  }
});

test('every rank keeps as many numbers as without an overlap', async () => {
  await using plain = await start(model.path, 0);
  await using overlapping = await start(model.path, 5);
  const bytes = (ranks: LocalRanks): number[] => ranks.workers.map(({ ready }) => ready.cacheBytesPerToken);
  expect(bytes(overlapping)).toEqual(bytes(plain));
  expect(overlapping.plan.ranks.map(({ sharedLatent, latent }) => [sharedLatent, latent])).toEqual([
    [
      { start: 0, end: 5 },
      { start: 5, end: 12 },
    ],
    [
      { start: 0, end: 5 },
      { start: 12, end: 19 },
    ],
  ]);
});

test('an overlap that does not fit, or has no groups, is refused', async () => {
  await expect(start(model.path, 13)).rejects.toThrow(
    "overlap: 13 columns in each of 2 groups are more than the latent's 24; use at most 12",
  );
  await expect(startLocalRanks(model.path, 2, { scheme: 'dcp', latentOverlap: 3 })).rejects.toThrow(
    'overlap: columns that every latent group keeps are for scheme tpla in several groups; leave out the 3',
  );
});
