/** `--norm sliced`: decode norms each shard alone. Prompts stay exact, and a norm or a softmax that is cut alone loses less. */
import { expect, test } from 'vitest';
import { defaultLatentGroups } from '../../config/schemes.ts';
import { loadClusterConfig, type ClusterFlags } from '../../config/load.ts';
import { layOut } from '../../coordinator/cluster-layout.ts';
import { openCheckpoint } from '../../model/open.ts';
import { shardNormFactor } from '../../model/tpla/rotation.ts';
import { divergences } from '../helpers/divergence.ts';
import { expectClose } from '../helpers/expect-close.ts';
import { readGolden, tinyModel } from '../helpers/golden.ts';
import { startLocalRanks } from '../helpers/local-ranks.ts';
import { GOLDEN_LOGITS } from '../helpers/tolerances.ts';
import { writeTinyMla } from '../helpers/tiny-mla.ts';

const golden = readGolden('kimi-k2-like');
const vocab = golden.logits.length / golden.inputIds.length;

async function logits(scheme: 'tpla' | 'tpla-exact', norm: 'exact' | 'sliced', phase: 'prefill' | 'decode') {
  const options = {
    scheme,
    norm,
    latentGroups: defaultLatentGroups(scheme, 2),
    reparameterization: 'hadamard',
  } as const;
  await using ranks = await startLocalRanks(tinyModel('kimi-k2-like'), 2, options);
  const sequences = [{ slot: 0, start: 0, tokens: golden.inputIds }];
  return await ranks.logits({ phase, sequences, want: { kind: 'all' } });
}

test('a prompt is exact, and decode is off by the norm, by the softmax, or by both', async () => {
  expectClose(await logits('tpla', 'sliced', 'prefill'), golden.logits, GOLDEN_LOGITS);
  const loss = async (scheme: 'tpla' | 'tpla-exact', norm: 'exact' | 'sliced'): Promise<number> => {
    const kl = divergences(await logits(scheme, norm, 'decode'), golden.logits, vocab);
    return kl.reduce((sum, value) => sum + value, 0) / kl.length;
  };
  expect(await loss('tpla-exact', 'exact')).toBeLessThan(1e-8);
  const normAlone = await loss('tpla-exact', 'sliced');
  const softmaxAlone = await loss('tpla', 'exact');
  const both = await loss('tpla', 'sliced');
  expect(Math.min(normAlone, softmaxAlone)).toBeGreaterThan(1e-6);
  expect(both).toBeGreaterThan(Math.max(normAlone, softmaxAlone) / 2);
});

test('the factor makes the norm of a shard that of the whole where energy lies as it does on average', () => {
  const energy = Float64Array.of(9, 4, 1, 1, 0.25);
  const total = energy.reduce((sum, value) => sum + value, 0);
  const shares = energy.map((value) => value / total);
  const rms = (values: Float64Array): number =>
    Math.sqrt(values.reduce((sum, value) => sum + value, 0) / values.length);
  for (const [start, end] of [
    [0, 2],
    [2, 5],
  ] as const)
    expect(shardNormFactor(shares, { start, end })).toBeCloseTo(rms(energy.subarray(start, end)) / rms(energy), 12);
});

test('where there is no norm to cut, or whole latents are kept, it is refused', async () => {
  const layoutOf = async (path: string, flags: ClusterFlags): Promise<unknown> => {
    await using checkpoint = await openCheckpoint(path);
    return layOut(checkpoint, await loadClusterConfig({ flags: { model: path, norm: 'sliced', ...flags } }));
  };
  const kimi = tinyModel('kimi-k2-like');
  await using converted = await writeTinyMla();
  await expect(layoutOf(converted.path, { scheme: 'tpla' })).rejects.toThrow(
    'norm: sliced needs a model that norms its latent; this tpla_mla model does not',
  );
  await expect(layoutOf(kimi, { scheme: 'dcp' })).rejects.toThrow('has no meaning for scheme dcp with a whole latent');
  await expect(layoutOf(kimi, { scheme: 'tpla', window: 8 })).rejects.toThrow(
    'norm: sliced leaves no whole latents for a window of 8 and 0 sinks; leave them out',
  );
  await expect(layoutOf(kimi, { scheme: 'tpla' })).resolves.toMatchObject({ options: { norm: 'sliced' } });
});
