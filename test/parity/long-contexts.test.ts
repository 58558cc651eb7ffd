/** The exact schemes against one rank at every context from 1 to 4096 tokens: prompts, blocks, and single tokens at the edges. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Scheme } from '../../config/schemes.ts';
import { divergences } from '../helpers/divergence.ts';
import { startLocalRanks, type LocalRanks } from '../helpers/local-ranks.ts';
import { seededRandom } from '../helpers/random.ts';
import { EXACT_DIVERGENCE } from '../helpers/tolerances.ts';
import { tinyVocab, writeTinyMla } from '../helpers/tiny-mla.ts';

const contextTokens = 4096;
const maxStepTokens = 256;
const schemes: Scheme[] = ['mla', 'tpla-exact', 'dcp'];
const next = seededRandom(61);
const tokens = Array.from({ length: contextTokens }, () => Math.floor(next() * tinyVocab));

let model: Awaited<ReturnType<typeof writeTinyMla>>;
let expected: Float32Array; // [contextTokens, tinyVocab]
beforeAll(async () => {
  model = await writeTinyMla({ heads: 3, latentDim: 12, ropeDim: 4, nopeDim: 6, valueDim: 5 }, 12);
  await using one = await start('mla', 1);
  expected = await logitsOf(one, 'prefill', 0, contextTokens);
});
afterAll(() => model[Symbol.asyncDispose]());

const start = (scheme: Scheme, worldSize: number): Promise<LocalRanks> =>
  startLocalRanks(model.path, worldSize, { backend: 'ggml', scheme, contextTokens, maxStepTokens, slots: 1 });

async function logitsOf(
  ranks: LocalRanks,
  phase: 'prefill' | 'decode',
  from: number,
  to: number,
): Promise<Float32Array> {
  const rows = new Float32Array((to - from) * tinyVocab);
  for (let at = from; at < to; at += maxStepTokens) {
    const piece = tokens.slice(at, Math.min(to, at + maxStepTokens));
    const logits = await ranks.logits({
      phase,
      sequences: [{ slot: 0, start: at, tokens: piece }],
      want: { kind: 'all' },
    });
    rows.set(logits, (at - from) * tinyVocab);
  }
  return rows;
}

/**
 * Where the tokens of one rank end and those of the next begin (dcp deals blocks of 16): the first token of every block, and
 * both neighbours where a round of blocks ends and where programs begin to read more rows (multiples of 256).
 */
function edges(worldSize: number): number[] {
  const blocks = Array.from({ length: contextTokens / 16 }, (_, block) => 16 * block);
  const rounds = [16, 16 * worldSize, 256, 256 * worldSize, contextTokens];
  return [...new Set([...blocks, ...rounds.flatMap((round) => [round - 1, round + 1, 3 * round - 1])])].filter(
    (position) => position < contextTokens,
  );
}

test.each(schemes.flatMap((scheme) => [1, 2, 3, 4, 5].map((worldSize) => [scheme, worldSize] as const)))(
  '%s on %i ranks, contexts of 1 to 4096 tokens',
  async (scheme, worldSize) => {
    await using ranks = await start(scheme, worldSize);
    const check = async (phase: 'prefill' | 'decode', from: number, to: number): Promise<void> => {
      const rows = await logitsOf(ranks, phase, from, to);
      const kl = divergences(rows, expected.subarray(from * tinyVocab, to * tinyVocab), tinyVocab);
      expect(Math.max(...kl), `${phase} from ${from}`).toBeLessThan(EXACT_DIVERGENCE);
    };
    await check('decode', 0, 384);
    for (let at = 384; at < contextTokens - 128; at += maxStepTokens) {
      const piece = tokens.slice(at, Math.min(at + maxStepTokens, contextTokens - 128));
      const sequences = [{ slot: 0, start: at, tokens: piece }];
      await ranks.step({ phase: 'prefill', sequences, want: { kind: 'none' } });
    }
    await check('prefill', contextTokens - 128, contextTokens - 64);
    await check('decode', contextTokens - 64, contextTokens);
    // The cache holds all tokens now; a token sees those before it and writes its own row again.
    for (const position of edges(worldSize)) await check('decode', position, position + 1);
  },
  120_000,
);
