/** Cache and traffic as the ranks have them against what `tpla plan` computes, and the numbers of docs/schemes.md. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { defaultLatentGroups } from '../../config/schemes.ts';
import { planShards } from '../../config/shard-plan.ts';
import type { ModelConfig } from '../../config/model-config.ts';
import { openCheckpoint } from '../../model/open.ts';
import { bytesSentPerToken, exactTokenBytes, schemeCosts } from '../../coordinator/scheme-costs.ts';
import { LatentCache } from '../../worker/latent-cache.ts';
import { createGgmlKernels } from '../../worker/kernels/ggml/ggml.ts';
import { createReferenceKernels } from '../../worker/kernels/reference.ts';
import { startLocalRanks } from '../helpers/local-ranks.ts';
import { writeTinyMla } from '../helpers/tiny-mla.ts';

const schemes = ['mla', 'tpla', 'tpla-exact', 'dcp', 'gla'] as const;

let folder: Awaited<ReturnType<typeof writeTinyMla>>;
let model: ModelConfig;
beforeAll(async () => {
  folder = await writeTinyMla();
  await using checkpoint = await openCheckpoint(folder.path);
  model = checkpoint.config;
});
afterAll(() => folder[Symbol.asyncDispose]());

describe.each(schemes)('%s', (scheme) => {
  test.each([1, 2])('bytes sent for a decoded token on %i ranks', async (worldSize) => {
    await using ranks = await startLocalRanks(folder.path, worldSize, { scheme });
    const decode = async (id: number, start: number, count: number): Promise<number> => {
      const tokens = Array.from({ length: count }, (_, i) => (start + 7 * i) % 90);
      const answers = await Promise.all(
        ranks.workers.map((worker) =>
          worker.answer({
            kind: 'step',
            id,
            phase: 'decode',
            sequences: [{ slot: 0, start, tokens }],
            want: { kind: 'last' },
          }),
        ),
      );
      return answers.reduce((sum, { reply }) => sum + reply.bytesSent, 0) / worldSize;
    };
    await decode(1, 0, 40);
    // Up to two ranks the in-process group sends what a ring does.
    expect(await decode(2, 40, 1)).toBeCloseTo(bytesSentPerToken(model, ranks.plan, 41), 6);
  });

  test.each([2, 3, 4])('cache of %i ranks as allocated', (worldSize) => {
    const plan = planShards(model, {
      worldSize,
      scheme,
      latentGroups: defaultLatentGroups(scheme, worldSize),
      blockSize: 1,
    });
    using kernels = createReferenceKernels();
    const contextTokens = 2304; // of every number of ranks a whole number of read steps
    const caches = plan.ranks.map(
      (rank) =>
        new LatentCache(kernels, model, plan, rank, { type: 'f32', contextTokens, slots: 2, exactPrefill: false }),
    );
    const cost = schemeCosts(model, worldSize, 'f32', contextTokens).find((each) => each.scheme === scheme)!;
    const perToken = caches.map((cache) => cache.bytesPerToken);
    expect(Math.max(...perToken)).toBeCloseTo(cost.cacheBytesPerToken, 6);
    for (const cache of caches) {
      const spareRow = scheme === 'dcp' ? model.numLayers * 32 * 4 : 0;
      expect(cache.allocatedBytes).toBeCloseTo(2 * contextTokens * cache.bytesPerToken + spareRow, 6);
    }
  });
});

test('cache of exact tokens as allocated', () => {
  const exactTokens = { sinks: 3, window: 20 };
  const plan = planShards(model, { worldSize: 2, scheme: 'tpla', latentGroups: 2, blockSize: 1, exactTokens });
  using kernels = createReferenceKernels();
  const [rank] = plan.ranks;
  const cache = new LatentCache(kernels, model, plan, rank!, {
    type: 'f32',
    contextTokens: 256,
    slots: 2,
    exactPrefill: false,
  });
  const spareRow = model.numLayers * 32 * 4;
  const bytes = cache.recent!.layers.reduce((sum, { shape }) => sum + shape[0]! * shape[1]! * 4, 0);
  expect(bytes).toBe(2 * exactTokenBytes(model, plan, rank!) + spareRow);
});

describe.each([
  ['a 64 + 128 conversion', 64, 128, { mla: 192, tpla: 128, 'tpla-exact': 96, dcp: 96, gla: 128 }],
  ['DeepSeek-V3', 64, 512, { mla: 576, tpla: 320, 'tpla-exact': 288, dcp: 288, gla: 320 }],
] as const)('cache numbers per token and layer of %s on 2 ranks', (_, ropeDim, latentDim, expected) => {
  test.each(schemes)('%s, computed and as ggml holds them', (scheme) => {
    const config: ModelConfig = {
      ...model,
      numLayers: 1,
      attention: {
        kind: 'mla',
        latentDim,
        ropeDim,
        nopeDim: 64,
        valueDim: 64,
        queryLoraDim: null,
        latentNormEps: null,
        scoreScale: 1,
        scoreSoftcap: 0,
      },
    };
    const cost = schemeCosts(config, 2, 'f16', 0).find((each) => each.scheme === scheme);
    expect(cost!.cacheBytesPerToken / 2).toBe(expected[scheme]);
    const latentGroups = defaultLatentGroups(scheme, 2);
    const plan = planShards(config, { worldSize: 2, scheme, latentGroups, blockSize: 1 });
    using kernels = createGgmlKernels({ device: '', threads: 1 });
    for (const rank of plan.ranks) {
      const options = { type: 'f16', contextTokens: 512, slots: 1, exactPrefill: false } as const;
      expect(new LatentCache(kernels, config, plan, rank, options).bytesPerToken / 2).toBe(expected[scheme]);
    }
  });
});
