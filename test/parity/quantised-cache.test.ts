/** A cache in q8_0: near the one in f32 in every scheme, after a prompt and in decode, and refused where blocks do not fit. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadClusterConfig } from '../../config/load.ts';
import type { Scheme } from '../../config/schemes.ts';
import { layOut } from '../../coordinator/cluster-layout.ts';
import { openCheckpoint } from '../../model/open.ts';
import { divergences } from '../helpers/divergence.ts';
import { tinyModel } from '../helpers/golden.ts';
import { startLocalRanks } from '../helpers/local-ranks.ts';
import { seededRandom } from '../helpers/random.ts';
import { tinyVocab, writeTinyMla } from '../helpers/tiny-mla.ts';

let model: Awaited<ReturnType<typeof writeTinyMla>>;
beforeAll(async () => (model = await writeTinyMla({ latentDim: 64, ropeDim: 64 })));
afterAll(() => model[Symbol.asyncDispose]());

const next = seededRandom(51);
const tokens = Array.from({ length: 90 }, () => Math.floor(next() * tinyVocab));

async function logitsOf(scheme: Scheme, worldSize: number, cacheType: 'f32' | 'q8_0'): Promise<Float32Array> {
  await using ranks = await startLocalRanks(model.path, worldSize, { backend: 'ggml', scheme, cacheType });
  await ranks.step({
    phase: 'prefill',
    sequences: [{ slot: 0, start: 0, tokens: tokens.slice(0, 70) }],
    want: { kind: 'none' },
  });
  const parts: Float32Array[] = [];
  for (let i = 70; i < tokens.length; i++)
    parts.push(
      await ranks.logits({
        phase: 'decode',
        sequences: [{ slot: 0, start: i, tokens: tokens.slice(i, i + 1) }],
        want: { kind: 'last' },
      }),
    );
  return Float32Array.from(parts.flatMap((part) => [...part]));
}

test.each([
  ['mla', 1],
  ['mla', 3],
  ['tpla', 2],
  ['tpla-exact', 2],
  ['dcp', 3],
] as const)('%s on %i ranks', async (scheme, worldSize) => {
  const kl = divergences(
    await logitsOf(scheme, worldSize, 'q8_0'),
    await logitsOf(scheme, worldSize, 'f32'),
    tinyVocab,
  );
  expect(Math.max(...kl)).toBeGreaterThan(0);
  expect(kl.reduce((sum, value) => sum + value) / kl.length).toBeLessThan(2e-3);
});

describe('what does not fit is refused', () => {
  const refusal = async (path: string, flags: Parameters<typeof loadClusterConfig>[0]['flags']): Promise<string> => {
    await using checkpoint = await openCheckpoint(path);
    const config = await loadClusterConfig({ flags: { model: path, cacheType: 'q8_0', ...flags } });
    try {
      layOut(checkpoint, config);
    } catch (error) {
      return error instanceof Error ? error.message : '';
    }
    return '';
  };

  test('heads, parts of a latent, backends', async () => {
    expect(await refusal(tinyModel('llama-gqa'), { ranks: 2 })).toBe(
      'cache.type: q8_0 stores blocks of 32 numbers, but rank 0 keeps heads of 16 numbers of a token; use f16, ' +
        'or a model and latent groups where each is a multiple of 32',
    );
    expect(await refusal(model.path, { ranks: 4, scheme: 'tpla' })).toContain(
      'rank 0 keeps 16 latent columns and 64 of the rotary key of a token',
    );
    expect(await refusal(model.path, { ranks: 1, backend: 'gpujs' })).toBe(
      'cache.type: q8_0 is computed by backend ggml only, not by gpujs; use f16 or f32',
    );
    expect(await refusal(model.path, { ranks: 2, scheme: 'tpla' })).toBe('');
  });
});
