/** The tiny checkpoints of every layout, on every backend and sharded, against the reference implementation's logits. */
import { describe, expect, test } from 'vitest';
import { expectClose } from '../helpers/expect-close.ts';
import { readGolden, tinyCheckpoints, tinyModel } from '../helpers/golden.ts';
import { startLocalRanks } from '../helpers/local-ranks.ts';
import { GOLDEN_LOGITS } from '../helpers/tolerances.ts';

const backends = ['reference', 'ggml', 'gpujs'] as const;

describe.each(backends)('%s', (backend) => {
  describe.each(tinyCheckpoints())('%s', (name) => {
    const golden = readGolden(name);

    test.each([1, 2, 3, 4])('prompt logits on %i ranks', async (worldSize) => {
      await using ranks = await startLocalRanks(tinyModel(name), worldSize, { backend });
      const logits = await ranks.logits({
        phase: 'prefill',
        sequences: [{ slot: 0, start: 0, tokens: golden.inputIds }],
        want: { kind: 'all' },
      });
      expectClose(logits, golden.logits, GOLDEN_LOGITS);
    });

    test('greedy continuation with the cache, on 2 ranks', async () => {
      await using ranks = await startLocalRanks(tinyModel(name), 2, { backend });
      const vocab = golden.greedyLogits.length / golden.greedyIds.length;
      let tokens = golden.inputIds;
      let start = 0;
      const generated: number[] = [];
      for (let step = 0; step < golden.greedyIds.length; step++) {
        const logits = await ranks.logits({
          phase: step === 0 ? 'prefill' : 'decode',
          sequences: [{ slot: 1, start, tokens }],
          want: { kind: 'last' },
        });
        expectClose(logits, golden.greedyLogits.subarray(step * vocab, (step + 1) * vocab), GOLDEN_LOGITS);
        start += tokens.length;
        tokens = [argmax(logits)];
        generated.push(...tokens);
      }
      expect(generated).toEqual(golden.greedyIds);
    });
  });
});

function argmax(values: Float32Array): number {
  return values.indexOf(Math.max(...values));
}
