/**
 * Converted models whose first and last tokens keep the source's keys and values: what is near is exact in every family,
 * and every scheme, number of ranks, order of steps and backend gives the same.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { cp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { planShards } from '../../config/shard-plan.ts';
import { openCheckpoint } from '../../model/open.ts';
import { convertTinyNear } from '../helpers/convert-near.ts';
import { divergences } from '../helpers/divergence.ts';
import { expectClose } from '../helpers/expect-close.ts';
import { readGolden, tinyCheckpoints, tinyModel } from '../helpers/golden.ts';
import { startLocalRanks, type LocalRanks } from '../helpers/local-ranks.ts';
import { seededRandom } from '../helpers/random.ts';
import { CONVERTED_EXACTLY } from '../helpers/tolerances.ts';

const unconverted = /^(qwen3|deepseek|kimi)/;
const families = tinyCheckpoints().filter((name) => !unconverted.test(name));

let root: string;
beforeAll(() => (root = mkdtempSync(join(tmpdir(), 'near-'))));
afterAll(() => rmSync(root, { recursive: true }));

describe.each(families)('%s, all tokens near', (name) => {
  const golden = readGolden(name);
  const folder = () => join(root, name);
  beforeAll(() => convertTinyNear(tinyModel(name), folder(), { sinks: 0, window: 256 }, 4, 6));

  test.each([
    { scheme: 'mla', worldSize: 1 },
    { scheme: 'mla', worldSize: 3 },
    { scheme: 'dcp', worldSize: 2 },
    { scheme: 'tpla', worldSize: 2 },
    { scheme: 'tpla-exact', worldSize: 3 },
    { scheme: 'gla', worldSize: 2 },
  ] as const)('$scheme on $worldSize ranks computes the source', async ({ scheme, worldSize }) => {
    await using ranks = await startLocalRanks(folder(), worldSize, { backend: 'ggml', scheme });
    const vocab = golden.greedyLogits.length / golden.greedyIds.length;
    const prompt = await run(ranks, golden.inputIds, 'prefill', 0, golden.inputIds.length);
    expectClose(prompt, golden.logits, CONVERTED_EXACTLY);
    const all = [...golden.inputIds, ...golden.greedyIds];
    for (let i = 0; i + 1 < golden.greedyIds.length; i++) {
      const at = golden.inputIds.length + i;
      const next = await run(ranks, all, 'decode', at, at + 1);
      expectClose(next, golden.greedyLogits.subarray((i + 1) * vocab, (i + 2) * vocab), CONVERTED_EXACTLY);
    }
  });
});

async function run(
  ranks: LocalRanks,
  tokens: readonly number[],
  phase: 'prefill' | 'decode',
  from: number,
  to: number,
  slot = 0,
): Promise<Float32Array> {
  const sequences = [{ slot, start: from, tokens: tokens.slice(from, to) }];
  return await ranks.logits({ phase, sequences, want: { kind: 'all' } });
}

test('where only pairs that do not turn lose RoPE and no number is left out, far tokens are exact too', async () => {
  // Frequencies 1, 1e-7.5, 1e-15, ...: the first keep RoPE.
  const source = join(root, 'still');
  await cp(tinyModel('llama-gqa'), source, { recursive: true });
  const config = JSON.parse(await readFile(join(source, 'config.json'), 'utf8')) as object;
  await writeFile(join(source, 'config.json'), JSON.stringify({ ...config, rope_theta: 1e60 }));
  const folder = join(root, 'still-converted');
  await convertTinyNear(source, folder, { sinks: 2, window: 5 }, 4, 60, (l) => (l === 0 ? [0.5, 0.1] : [1, 0]));
  await using checkpoint = await openCheckpoint(folder);
  expect(checkpoint.shapeOf('farSlope', 0)).toBeDefined();
  const next = seededRandom(8);
  const { vocabSize } = checkpoint.config;
  const tokens = Array.from({ length: 40 }, () => Math.floor(next() * vocabSize));
  await using gqa = await startLocalRanks(source, 1, { backend: 'reference' });
  const expected = await run(gqa, tokens, 'prefill', 0, 40);
  for (const [scheme, worldSize] of [
    ['mla', 2],
    ['dcp', 3],
    ['tpla-exact', 2],
  ] as const) {
    await using ranks = await startLocalRanks(folder, worldSize, { backend: 'ggml', scheme });
    const close = { absolute: 1e-3, relative: 1e-3 };
    expectClose(await run(ranks, tokens, 'prefill', 0, 25), expected.subarray(0, 25 * vocabSize), close);
    expectClose(await run(ranks, tokens, 'decode', 25, 40), expected.subarray(25 * vocabSize), close);
  }
});

describe('few tokens near', () => {
  const name = 'llama-gqa';
  const near = { sinks: 3, window: 11 };
  const folder = () => join(root, 'few');
  const tokens: number[] = [];
  let vocab = 0;
  let whole: Float32Array; // one rank, all tokens at once
  beforeAll(async () => {
    await convertTinyNear(tinyModel(name), folder(), near, 4, 6);
    await using source = await openCheckpoint(tinyModel(name));
    vocab = source.config.vocabSize;
    const next = seededRandom(5);
    for (let i = 0; i < 60; i++) tokens.push(Math.floor(next() * vocab));
    await using one = await startLocalRanks(folder(), 1, { backend: 'reference', scheme: 'mla' });
    whole = await run(one, tokens, 'prefill', 0, 60);
  });

  test('only what is near is exact', async () => {
    await using gqa = await startLocalRanks(tinyModel(name), 1, { backend: 'reference' });
    const source = await run(gqa, tokens, 'prefill', 0, 60);
    const kl = divergences(whole, source, vocab);
    expect(Math.max(...kl.slice(0, near.window))).toBeLessThan(1e-8);
    expect(Math.max(...kl.slice(near.sinks + near.window + 1))).toBeGreaterThan(1e-4);
  });

  const layouts = [
    { scheme: 'mla', worldSize: 1, backend: 'ggml' },
    { scheme: 'mla', worldSize: 2, backend: 'ggml' },
    { scheme: 'mla', worldSize: 5, backend: 'ggml' },
    { scheme: 'tpla', worldSize: 2, latentGroups: 1, backend: 'ggml' },
    { scheme: 'dcp', worldSize: 2, backend: 'ggml' },
    { scheme: 'dcp', worldSize: 3, backend: 'reference' },
    { scheme: 'dcp', worldSize: 6, backend: 'ggml' },
    { scheme: 'tpla-exact', worldSize: 2, backend: 'ggml' },
    { scheme: 'tpla-exact', worldSize: 5, backend: 'reference' },
    { scheme: 'mla', worldSize: 2, backend: 'gpujs' },
  ] as const;

  test.each(layouts)('$scheme on $worldSize ranks, $backend', async ({ worldSize, ...options }) => {
    await using ranks = await startLocalRanks(folder(), worldSize, options);
    const at = (from: number, to: number): Float32Array => whole.subarray(from * vocab, to * vocab);
    const close = { absolute: 1e-4, relative: 1e-4 };
    expectClose(await run(ranks, tokens, 'prefill', 0, 20), at(0, 20), close);
    expectClose(await run(ranks, tokens, 'prefill', 20, 33), at(20, 33), close);
    expectClose(await run(ranks, tokens, 'decode', 33, 45), at(33, 45), close);
    for (let i = 45; i < 50; i++) expectClose(await run(ranks, tokens, 'decode', i, i + 1), at(i, i + 1), close);
    const other = await run(ranks, tokens, 'prefill', 0, 8, 1);
    expectClose(other, at(0, 8), close);
    const both = await ranks.logits({
      phase: 'decode',
      sequences: [
        { slot: 0, start: 50, tokens: tokens.slice(50, 51) },
        { slot: 1, start: 8, tokens: tokens.slice(8, 9) },
      ],
      want: { kind: 'last' },
    });
    expectClose(both.subarray(0, vocab), at(50, 51), close);
    expectClose(both.subarray(vocab), at(8, 9), close);
  });

  test('a prompt that goes on from an earlier one finds its last tokens again', async () => {
    await using ranks = await startLocalRanks(folder(), 2, { backend: 'ggml', scheme: 'dcp' });
    const close = { absolute: 1e-4, relative: 1e-4 };
    await run(ranks, tokens, 'prefill', 0, 30);
    const other = [...tokens.slice(0, 30), ...tokens.slice(0, 20).toReversed()];
    for (let i = 30; i < 50; i++) await run(ranks, other, 'decode', i, i + 1);
    expectClose(await run(ranks, tokens, 'prefill', 30, 44), whole.subarray(30 * vocab, 44 * vocab), close);
    for (let i = 44; i < 48; i++) await run(ranks, tokens, 'decode', i, i + 1);
    expectClose(await run(ranks, tokens, 'prefill', 44, 60), whole.subarray(44 * vocab), close);
  });

  test('the cut latent only loses behind the window', async () => {
    await using ranks = await startLocalRanks(folder(), 2, { backend: 'ggml', scheme: 'tpla' });
    await run(ranks, tokens, 'prefill', 0, 5);
    const kl = divergences(await run(ranks, tokens, 'decode', 5, 60), whole.subarray(5 * vocab), vocab);
    expect(Math.max(...kl.slice(0, near.window - 5))).toBeLessThan(1e-8);
    expect(Math.max(...kl)).toBeGreaterThan(1e-6);
  });

  test('a long prompt in chunks, with keys and values expanded, is what a short one is', async () => {
    const many = Array.from({ length: 400 }, (_, i) => tokens[i % 60] ?? 0);
    await using one = await startLocalRanks(folder(), 1, { backend: 'ggml', scheme: 'mla' });
    await using other = await startLocalRanks(folder(), 1, { backend: 'reference', scheme: 'mla' });
    const atOnce = await run(one, many, 'prefill', 0, 400);
    expectClose(await run(other, many, 'decode', 0, 400), atOnce, { absolute: 2e-4, relative: 2e-4 });
  });
});

test('a window that is asked for beside near tokens is refused', async () => {
  const folder = join(root, 'refused');
  await convertTinyNear(tinyModel('llama-gqa'), folder, { sinks: 1, window: 8 }, 4, 6);
  await using checkpoint = await openCheckpoint(folder);
  const request = { worldSize: 2, scheme: 'tpla', latentGroups: 2, blockSize: 1 } as const;
  expect(planShards(checkpoint.config, request).exactTokens).toEqual({ sinks: 1, window: 8 });
  expect(() => planShards(checkpoint.config, { ...request, exactTokens: { sinks: 0, window: 4 } })).toThrow(
    'converted for a window of 8 and 1 sinks',
  );
});
