/**
 * DeepSeek-like golden checkpoints under every scheme: the exact ones give the reference's logits in prompt and decode, the
 * approximate ones in the prompt. TPLA_GOLDEN names a folder with more of them than the repository has room for.
 */
import { describe, expect, test } from 'vitest';
import { expectClose } from '../helpers/expect-close.ts';
import { readGolden, tinyCheckpoints, tinyModel } from '../helpers/golden.ts';
import { startLocalRanks } from '../helpers/local-ranks.ts';
import { GOLDEN_LOGITS } from '../helpers/tolerances.ts';

const checkpoints = tinyCheckpoints().filter((name) => /^(deepseek|kimi)/.test(name));

describe.each(checkpoints)('%s', (name) => {
  const golden = readGolden(name);
  const vocab = golden.logits.length / golden.inputIds.length;
  const tokens = [...golden.inputIds, ...golden.greedyIds];

  test.each((['mla', 'tpla-exact', 'dcp'] as const).flatMap((scheme) => [2, 3].map((size) => [scheme, size] as const)))(
    '%s on %i ranks: prompt and the decoded rest',
    async (scheme, worldSize) => {
      await using ranks = await startLocalRanks(tinyModel(name), worldSize, { backend: 'ggml', scheme });
      const prompt = golden.inputIds.length;
      const run = (phase: 'prefill' | 'decode', from: number, to: number): Promise<Float32Array> =>
        ranks.logits({
          phase,
          sequences: [{ slot: 0, start: from, tokens: tokens.slice(from, to) }],
          want: { kind: 'all' },
        });
      expectClose(await run('prefill', 0, prompt), golden.logits, GOLDEN_LOGITS);
      // The logits behind greedy token i are those of step i + 1; a block first, then one by one.
      const steps = golden.greedyIds.length - 1;
      const block = await run('decode', prompt, prompt + 6);
      expectClose(block, golden.greedyLogits.subarray(vocab, 7 * vocab), GOLDEN_LOGITS);
      for (let i = 6; i < steps; i++)
        expectClose(
          await run('decode', prompt + i, prompt + i + 1),
          golden.greedyLogits.subarray((i + 1) * vocab, (i + 2) * vocab),
          GOLDEN_LOGITS,
        );
    },
  );

  test.each(['tpla', 'gla'] as const)('%s: the prompt is exact, decode is not', async (scheme) => {
    await using ranks = await startLocalRanks(tinyModel(name), 2, { backend: 'ggml', scheme });
    const logits = (phase: 'prefill' | 'decode'): Promise<Float32Array> =>
      ranks.logits({ phase, sequences: [{ slot: 0, start: 0, tokens: golden.inputIds }], want: { kind: 'all' } });
    expectClose(await logits('prefill'), golden.logits, GOLDEN_LOGITS);
    const decoded = await logits('decode');
    expect(decoded.every(Number.isFinite)).toBe(true);
    expect(() => expectClose(decoded, golden.logits, GOLDEN_LOGITS)).toThrow();
  });
});
