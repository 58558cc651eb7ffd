/** What only some families have: experts cut either way, the schemes of a native latent, and one answer for them all. */
import { describe, expect, test } from 'vitest';
import type { Scheme } from '../../config/schemes.ts';
import { expectClose } from '../helpers/expect-close.ts';
import { readGolden, tinyModel } from '../helpers/golden.ts';
import { startLocalRanks } from '../helpers/local-ranks.ts';
import { GOLDEN_LOGITS } from '../helpers/tolerances.ts';

describe.each(['qwen3-moe', 'kimi-k2-like'])('%s, whole experts dealt out', (name) => {
  const golden = readGolden(name);
  const vocab = golden.greedyLogits.length / golden.greedyIds.length;

  // 5 ranks: more than some token has experts, so that some ranks have nothing to do for it.
  test.each([1, 2, 3, 5])('prompt and first tokens on %i ranks', async (worldSize) => {
    await using ranks = await startLocalRanks(tinyModel(name), worldSize, {
      backend: 'ggml',
      expertSharding: 'experts',
      ...(name === 'qwen3-moe' ? {} : { scheme: 'mla' }),
    });
    const held = ranks.plan.ranks.map(({ experts }) => experts.end - experts.start);
    expect(held.reduce((a, b) => a + b)).toBe(name === 'qwen3-moe' ? 8 : 12);
    const logits = await ranks.logits({
      phase: 'prefill',
      sequences: [{ slot: 0, start: 0, tokens: golden.inputIds }],
      want: { kind: 'all' },
    });
    expectClose(logits, golden.logits, GOLDEN_LOGITS);
    for (const step of [0, 1, 2]) {
      const next = await ranks.logits({
        phase: 'decode',
        sequences: [{ slot: 0, start: golden.inputIds.length + step, tokens: [golden.greedyIds[step]!] }],
        want: { kind: 'last' },
      });
      expectClose(next, golden.greedyLogits.subarray((step + 1) * vocab, (step + 2) * vocab), GOLDEN_LOGITS);
    }
  });
});

describe('a native latent', () => {
  const golden = readGolden('kimi-k2-like');
  const vocab = golden.greedyLogits.length / golden.greedyIds.length;

  test.each([
    { scheme: 'tpla', worldSize: 2, latentGroups: 2, decodesExactly: false },
    { scheme: 'tpla', worldSize: 4, latentGroups: 2, decodesExactly: false },
    { scheme: 'tpla', worldSize: 3, latentGroups: 1, decodesExactly: true },
    { scheme: 'mla', worldSize: 4, latentGroups: 1, decodesExactly: true },
    { scheme: 'dcp', worldSize: 3, latentGroups: 1, decodesExactly: true },
    { scheme: 'tpla-exact', worldSize: 2, latentGroups: 2, decodesExactly: true },
  ] satisfies { scheme: Scheme; worldSize: number; latentGroups: number; decodesExactly: boolean }[])(
    'scheme $scheme on $worldSize ranks in $latentGroups groups',
    async ({ scheme, worldSize, latentGroups, decodesExactly }) => {
      const options = { backend: 'ggml', scheme, latentGroups, reparameterization: 'hadamard' } as const;
      await using ranks = await startLocalRanks(tinyModel('kimi-k2-like'), worldSize, options);
      const prompt = await ranks.logits({
        phase: 'prefill',
        sequences: [{ slot: 0, start: 0, tokens: golden.inputIds }],
        want: { kind: 'all' },
      });
      // Prefill is exact in every scheme, also where decode is not.
      expectClose(prompt, golden.logits, GOLDEN_LOGITS);
      const next = await ranks.logits({
        phase: 'decode',
        sequences: [{ slot: 0, start: golden.inputIds.length, tokens: [golden.greedyIds[0]!] }],
        want: { kind: 'last' },
      });
      const expected = golden.greedyLogits.subarray(vocab, 2 * vocab);
      if (decodesExactly) expectClose(next, expected, GOLDEN_LOGITS);
      else expect(next.every((logit, i) => Math.abs(logit - expected[i]!) < 1e-4)).toBe(false);
    },
  );
});
