/** Scheme tpla with first and last tokens scored exactly: what is exact then, and that blocks and reruns agree. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ExactTokens } from '../../config/shard-plan.ts';
import { divergences } from '../helpers/divergence.ts';
import { expectClose } from '../helpers/expect-close.ts';
import { startLocalRanks, type LocalRanks } from '../helpers/local-ranks.ts';
import { seededRandom } from '../helpers/random.ts';
import { tinyVocab, writeTinyMla } from '../helpers/tiny-mla.ts';

const next = seededRandom(31);
const tokens = Array.from({ length: 60 }, () => Math.floor(next() * tinyVocab));

let model: Awaited<ReturnType<typeof writeTinyMla>>;
let exact: Float32Array; // logits of one rank
beforeAll(async () => {
  model = await writeTinyMla();
  await using one = await startLocalRanks(model.path, 1, { backend: 'ggml', scheme: 'mla' });
  exact = await run(one, 'prefill', 0, 60);
});
afterAll(() => model[Symbol.asyncDispose]());

async function start(exactTokens: ExactTokens, worldSize = 3, latentGroups = worldSize): Promise<LocalRanks> {
  return await startLocalRanks(model.path, worldSize, { backend: 'ggml', scheme: 'tpla', latentGroups, exactTokens });
}

async function run(ranks: LocalRanks, phase: 'prefill' | 'decode', from: number, to: number, slot = 0) {
  const sequences = [{ slot, start: from, tokens: tokens.slice(from, to) }];
  return await ranks.logits({ phase, sequences, want: { kind: 'all' } });
}

function worst(logits: Float32Array, from: number): number {
  const to = from + logits.length / tinyVocab;
  return Math.max(...divergences(logits, exact.subarray(from * tinyVocab, to * tinyVocab), tinyVocab));
}

describe('exact first and last tokens', () => {
  test('everything within the window is exact, decoded in blocks and one by one', async () => {
    await using ranks = await start({ sinks: 0, window: 64 });
    expect(worst(await run(ranks, 'decode', 0, 30), 0)).toBeLessThan(1e-8);
    for (let i = 30; i < 40; i++) expect(worst(await run(ranks, 'decode', i, i + 1), i)).toBeLessThan(1e-8);
    expect(worst(await run(ranks, 'decode', 40, 60), 40)).toBeLessThan(1e-8);
  });

  test('sinks and window that meet are exact, after a prompt, with heads divided inside a group', async () => {
    await using ranks = await start({ sinks: 7, window: 53 }, 4, 2);
    await run(ranks, 'prefill', 0, 11);
    await run(ranks, 'prefill', 11, 25);
    expect(worst(await run(ranks, 'decode', 25, 40), 25)).toBeLessThan(1e-8);
    expect(worst(await run(ranks, 'decode', 40, 60), 40)).toBeLessThan(1e-8);
  });

  test('a small window is better than none', async () => {
    const mean = async (exactTokens: ExactTokens): Promise<number> => {
      await using ranks = await start(exactTokens);
      await run(ranks, 'prefill', 0, 20);
      const logits = await run(ranks, 'decode', 20, 60);
      const kl = divergences(logits, exact.subarray(20 * tinyVocab), tinyVocab);
      return kl.reduce((sum, value) => sum + value, 0) / kl.length;
    };
    expect(await mean({ sinks: 4, window: 16 })).toBeLessThan(0.7 * (await mean({ sinks: 0, window: 0 })));
  });

  test.each([
    { sinks: 4, window: 0 },
    { sinks: 0, window: 5 },
    { sinks: 3, window: 8 },
  ])('a block of tokens is what it is one by one: $sinks sinks, window $window', async (exactTokens) => {
    await using ranks = await start(exactTokens);
    await run(ranks, 'prefill', 0, 13);
    await run(ranks, 'prefill', 0, 13, 1);
    const block = await run(ranks, 'decode', 13, 40);
    for (let i = 13; i < 40; i++) {
      const row = block.subarray((i - 13) * tinyVocab, (i - 12) * tinyVocab);
      expectClose(await run(ranks, 'decode', i, i + 1, 1), row, { absolute: 1e-4, relative: 0 });
    }
  });

  test('a slot that begins again gives what a fresh one gives', async () => {
    await using ranks = await start({ sinks: 2, window: 6 });
    const first = await run(ranks, 'decode', 0, 30);
    expect(await run(ranks, 'decode', 0, 30)).toEqual(first);
  });

  test('a slot that goes on from the middle scores the lost rows by its shard', async () => {
    await using ranks = await start({ sinks: 0, window: 20 });
    await using plain = await start({ sinks: 0, window: 0 });
    await run(ranks, 'decode', 0, 16);
    await run(plain, 'decode', 0, 16);
    const before = await run(ranks, 'decode', 16, 17);
    await run(ranks, 'decode', 17, 50);
    const after = await run(ranks, 'decode', 16, 17);
    expect(worst(before, 16)).toBeLessThan(1e-8);
    expect(worst(after, 16)).toBeLessThan(2 * worst(await run(plain, 'decode', 16, 17), 16));
  });
});
