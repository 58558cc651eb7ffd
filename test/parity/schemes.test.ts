/** Every scheme over random MLA checkpoints: the exact ones against one rank, block against single tokens, the cache. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Scheme } from '../../config/schemes.ts';
import { divergences } from '../helpers/divergence.ts';
import { expectClose } from '../helpers/expect-close.ts';
import { startLocalRanks, type LocalRanks } from '../helpers/local-ranks.ts';
import { seededRandom } from '../helpers/random.ts';
import { tinyVocab, writeTinyMla } from '../helpers/tiny-mla.ts';
import { EXACT_DIVERGENCE } from '../helpers/tolerances.ts';

const backend = 'ggml';

let model: Awaited<ReturnType<typeof writeTinyMla>>;
beforeAll(async () => (model = await writeTinyMla()));
afterAll(() => model[Symbol.asyncDispose]());

function tokensOf(seed: number, length: number): number[] {
  const next = seededRandom(seed);
  return Array.from({ length }, () => Math.floor(next() * tinyVocab));
}

async function logitsOf(
  ranks: LocalRanks,
  phase: 'prefill' | 'decode',
  start: number,
  tokens: number[],
  slot = 0,
): Promise<Float32Array> {
  return await ranks.logits({ phase, sequences: [{ slot, start, tokens }], want: { kind: 'all' } });
}

/**
 * Logits of all tokens: a prompt or, instead, the first `singles` tokens decoded one by one; then a block of decoded
 * tokens, then three single ones.
 */
async function runInPhases(ranks: LocalRanks, tokens: number[], singles = 0): Promise<Float32Array> {
  const prompt = singles > 0 ? singles : Math.floor(tokens.length * 0.6);
  const block = tokens.length - prompt - 3;
  const parts: Float32Array[] = [];
  const decode = async (start: number, end: number): Promise<void> => {
    parts.push(await logitsOf(ranks, 'decode', start, tokens.slice(start, end)));
  };
  if (singles === 0) parts.push(await logitsOf(ranks, 'prefill', 0, tokens.slice(0, prompt)));
  for (let i = 0; i < singles; i++) await decode(i, i + 1);
  await decode(prompt, prompt + block);
  for (let i = prompt + block; i < tokens.length; i++) await decode(i, i + 1);
  return Float32Array.from(parts.flatMap((part) => [...part]));
}

const exactSchemes: Scheme[] = ['mla', 'tpla-exact', 'dcp'];
describe('exact schemes', () => {
  const tokens = tokensOf(4, 300);
  let expected: Float32Array;
  beforeAll(async () => {
    await using one = await startLocalRanks(model.path, 1, { backend, scheme: 'mla' });
    expected = await logitsOf(one, 'prefill', 0, tokens);
  });

  test.each(exactSchemes.flatMap((scheme) => [2, 3, 4, 5, 8].map((worldSize) => [scheme, worldSize] as const)))(
    '%s on %i ranks gives what one rank does',
    async (scheme, worldSize) => {
      await using ranks = await startLocalRanks(model.path, worldSize, { backend, scheme });
      // Contexts of 1 to 18 tokens, over the end of a block of dcp (16); past the 256 rows that programs read at once.
      for (const singles of [18, 0]) {
        const logits = await runInPhases(ranks, tokens, singles);
        expect(Math.max(...divergences(logits, expected, tinyVocab)), `${singles}`).toBeLessThan(EXACT_DIVERGENCE);
      }
    },
  );

  test.each(exactSchemes)('%s continues a prompt in a second step, and after decoding', async (scheme) => {
    const tokens = tokensOf(5, 60);
    await using one = await startLocalRanks(model.path, 1, { backend, scheme: 'mla' });
    await using ranks = await startLocalRanks(model.path, 3, { backend, scheme });
    const run = async (cluster: LocalRanks): Promise<Float32Array> => {
      await logitsOf(cluster, 'prefill', 0, tokens.slice(0, 20), 1);
      await logitsOf(cluster, 'prefill', 20, tokens.slice(20, 37), 1);
      await logitsOf(cluster, 'decode', 37, tokens.slice(37, 40), 1);
      return await logitsOf(cluster, 'prefill', 40, tokens.slice(40), 1);
    };
    expect(Math.max(...divergences(await run(ranks), await run(one), tinyVocab))).toBeLessThan(EXACT_DIVERGENCE);
  });

  test.each(exactSchemes)('%s decodes four sequences of different lengths in one step', async (scheme) => {
    const starts = [0, 1, 31, 70];
    const prompts = starts.map((start, slot) => tokensOf(20 + slot, start + 2));
    const run = async (worldSize: number, as: Scheme): Promise<Float32Array> => {
      await using ranks = await startLocalRanks(model.path, worldSize, { backend, scheme: as, slots: 4 });
      for (const [slot, start] of starts.entries())
        if (start > 0) await logitsOf(ranks, 'prefill', 0, prompts[slot]!.slice(0, start), slot);
      const steps: Float32Array[] = [];
      for (const offset of [0, 1])
        steps.push(
          await ranks.logits({
            phase: 'decode',
            sequences: starts.map((start, slot) => {
              const at = start + offset;
              return { slot, start: at, tokens: prompts[slot]!.slice(at, at + 1) };
            }),
            want: { kind: 'last' },
          }),
        );
      return Float32Array.from(steps.flatMap((step) => [...step]));
    };
    const expectedLogits = await run(1, 'mla');
    for (const worldSize of [2, 3, 4, 5]) {
      const kl = divergences(await run(worldSize, scheme), expectedLogits, tinyVocab);
      expect(Math.max(...kl), `${worldSize} ranks`).toBeLessThan(EXACT_DIVERGENCE);
    }
  });

  test('more ranks than heads and than columns of the rotary key', async () => {
    await using small = await writeTinyMla({ heads: 3, ropeDim: 4 }, 7);
    const tokens = tokensOf(6, 50);
    await using one = await startLocalRanks(small.path, 1, { backend, scheme: 'mla' });
    const expectedLogits = await runInPhases(one, tokens);
    for (const scheme of exactSchemes) {
      await using ranks = await startLocalRanks(small.path, 6, { backend, scheme });
      const kl = divergences(await runInPhases(ranks, tokens), expectedLogits, tinyVocab);
      expect(Math.max(...kl), scheme).toBeLessThan(EXACT_DIVERGENCE);
    }
  });

  test.each(['reference', 'gpujs'] as const)('without a nope part, on the backend %s', async (other) => {
    await using ropeOnly = await writeTinyMla({ nopeDim: 0, bias: false, latentDim: 32 }, 8);
    const tokens = tokensOf(7, 40);
    await using one = await startLocalRanks(ropeOnly.path, 1, { backend: other, scheme: 'mla' });
    const expectedLogits = await runInPhases(one, tokens);
    for (const scheme of ['tpla-exact', 'dcp'] as const) {
      await using ranks = await startLocalRanks(ropeOnly.path, 3, { backend: other, scheme });
      const kl = divergences(await runInPhases(ranks, tokens), expectedLogits, tinyVocab);
      expect(Math.max(...kl), scheme).toBeLessThan(EXACT_DIVERGENCE);
    }
  });
});

describe('all schemes', () => {
  const everyScheme = ['mla', 'tpla', 'tpla-exact', 'dcp', 'gla'] as const;

  test.each(everyScheme)('%s decodes a block of tokens as it does one by one', async (scheme) => {
    const tokens = tokensOf(8, 50);
    await using ranks = await startLocalRanks(model.path, 3, { backend, scheme });
    await logitsOf(ranks, 'prefill', 0, tokens.slice(0, 20));
    const block = await logitsOf(ranks, 'decode', 20, tokens.slice(20));
    await logitsOf(ranks, 'prefill', 0, tokens.slice(0, 20), 1);
    for (let i = 20; i < tokens.length; i++) {
      const single = await logitsOf(ranks, 'decode', i, tokens.slice(i, i + 1), 1);
      const row = block.subarray((i - 20) * tinyVocab, (i - 19) * tinyVocab);
      expectClose(single, row, { absolute: 1e-4, relative: 0 });
    }
  });

  test.each(['tpla', 'gla'] as const)('%s is exact in prefill and not in decode', async (scheme) => {
    const tokens = tokensOf(9, 60);
    await using one = await startLocalRanks(model.path, 1, { backend, scheme: 'mla' });
    await using ranks = await startLocalRanks(model.path, 4, { backend, scheme });
    const exact = await logitsOf(one, 'prefill', 0, tokens);
    const prefill = divergences(await logitsOf(ranks, 'prefill', 0, tokens), exact, tinyVocab);
    expect(Math.max(...prefill)).toBeLessThan(EXACT_DIVERGENCE);
    const decoded = divergences(await logitsOf(ranks, 'decode', 0, tokens), exact, tinyVocab);
    expect(Math.max(...decoded)).toBeGreaterThan(1e-3);
  });

  test.each(['tpla', 'gla'] as const)('%s with one latent group is mla', async (scheme) => {
    const tokens = tokensOf(10, 30);
    await using mla = await startLocalRanks(model.path, 3, { backend, scheme: 'mla' });
    await using ranks = await startLocalRanks(model.path, 3, { backend, scheme, latentGroups: 1 });
    expect(await runInPhases(ranks, tokens)).toEqual(await runInPhases(mla, tokens));
  });

  test.each(['none', 'hadamard', 'pca'] as const)('rotation %s changes nothing while nothing is cut', async (kind) => {
    const tokens = tokensOf(11, 40);
    await using plain = await startLocalRanks(model.path, 1, { backend, scheme: 'mla' });
    const expected = await runInPhases(plain, tokens);
    for (const [scheme, worldSize] of [
      ['mla', 1],
      ['dcp', 2],
      ['tpla-exact', 2],
    ] as const) {
      await using ranks = await startLocalRanks(model.path, worldSize, { backend, scheme, reparameterization: kind });
      expectClose(await runInPhases(ranks, tokens), expected, { absolute: 1e-3, relative: 0 });
    }
  });
});
