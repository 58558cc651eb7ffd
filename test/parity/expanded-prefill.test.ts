/** Long prompts expand keys and values per head, decode absorbs W_UK and W_UV: the same logits in every backend and scheme. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { MlaConfig } from '../../config/model-config.ts';
import type { Scheme } from '../../config/schemes.ts';
import { expandingIsCheaper } from '../../worker/expanded-heads.ts';
import { expectClose } from '../helpers/expect-close.ts';
import { tinyModel } from '../helpers/golden.ts';
import { startLocalRanks } from '../helpers/local-ranks.ts';
import { seededRandom } from '../helpers/random.ts';
import { tinyVocab, writeTinyMla } from '../helpers/tiny-mla.ts';

/** Logits reach 40; sums in another order. */
const sameSums = { absolute: 2e-4, relative: 0 };

let model: Awaited<ReturnType<typeof writeTinyMla>>;
beforeAll(async () => (model = await writeTinyMla()));
afterAll(() => model[Symbol.asyncDispose]());

const next = seededRandom(41);
const tokens = Array.from({ length: 150 }, () => Math.floor(next() * tinyVocab));

describe.each(['ggml', 'reference', 'gpujs'] as const)('backend %s', (backend) => {
  test.each([
    { name: 'converted, with biases', path: () => model.path },
    { name: 'native, normed latent', path: () => tinyModel('kimi-k2-like') },
  ])('a prompt as prefill and as decode, $name', async ({ path }) => {
    await using ranks = await startLocalRanks(path(), 2, { backend, scheme: 'mla' });
    const run = (phase: 'prefill' | 'decode', slot: number): Promise<Float32Array> =>
      ranks.logits({ phase, sequences: [{ slot, start: 0, tokens }], want: { kind: 'all' } });
    expectClose(await run('prefill', 0), await run('decode', 1), sameSums);
  });
});

test.each(['tpla', 'tpla-exact', 'dcp', 'gla'] satisfies Scheme[])(
  'scheme %s reads a prompt in pieces, each in its own form',
  async (scheme) => {
    await using one = await startLocalRanks(model.path, 1, { backend: 'ggml', scheme: 'mla' });
    const expected = await one.logits({
      phase: 'decode',
      sequences: [{ slot: 0, start: 0, tokens }],
      want: { kind: 'all' },
    });
    await using ranks = await startLocalRanks(model.path, 3, { backend: 'ggml', scheme });
    // Seven tokens absorb, the others expand: also keys of tokens that another step read.
    for (const [start, end] of [[0, 90] as const, [90, 97] as const, [97, 150] as const]) {
      const logits = await ranks.logits({
        phase: 'prefill',
        sequences: [{ slot: 1, start, tokens: tokens.slice(start, end) }],
        want: { kind: 'all' },
      });
      expectClose(logits, expected.subarray(start * tinyVocab, end * tinyVocab), sameSums);
    }
  },
);

describe('which form is cheaper', () => {
  // DeepSeek-V3
  const config = { latentDim: 512, ropeDim: 64, nopeDim: 128, valueDim: 128 } as MlaConfig;

  test.each([
    { tokens: 1, rows: 256, expands: false },
    { tokens: 64, rows: 256, expands: false },
    { tokens: 128, rows: 256, expands: true },
    { tokens: 170, rows: 100_000, expands: false },
    { tokens: 171, rows: 100_000, expands: true },
  ])('$tokens tokens over $rows rows', ({ tokens, rows, expands }) => {
    expect(expandingIsCheaper(config, tokens, rows)).toBe(expands);
  });

  test('a latent narrower than the heads is never expanded, nor a key without nope part', () => {
    expect(expandingIsCheaper({ ...config, latentDim: 32 }, 256, 256)).toBe(false);
    expect(expandingIsCheaper({ ...config, nopeDim: 0 }, 256, 256)).toBe(false);
  });
});
