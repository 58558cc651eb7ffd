/** Closed-form corrections of scheme tpla: nothing changes where nothing is cut, and less is lost where something is. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ExactTokens } from '../../config/shard-plan.ts';
import { joinSegments } from '../../collective/window-sums.ts';
import { openCheckpoint } from '../../model/open.ts';
import { fitFileName, splitFit, writeFit, type FitShape } from '../../model/tpla/decode-fit.ts';
import { divergences } from '../helpers/divergence.ts';
import { startLocalRanks, type LocalRanks } from '../helpers/local-ranks.ts';
import { seededRandom } from '../helpers/random.ts';
import { tinyMla, tinyVocab, writeTinyMla } from '../helpers/tiny-mla.ts';

const next = seededRandom(41);
const windows = Array.from({ length: 6 }, () => Array.from({ length: 80 }, () => Math.floor(next() * tinyVocab)));
const prompt = 20;
const numLayers = 2;

let model: Awaited<ReturnType<typeof writeTinyMla>>;
let folder: string;
beforeAll(async () => {
  model = await writeTinyMla();
  folder = await mkdtemp(join(tmpdir(), 'corrections-'));
});
afterAll(async () => {
  await model[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});

const start = (
  exactTokens: ExactTokens,
  latentGroups: number,
  corrections = '',
  latentOverlap = 0,
): Promise<LocalRanks> =>
  startLocalRanks(model.path, latentGroups, {
    backend: 'ggml',
    scheme: 'tpla',
    latentGroups,
    exactTokens,
    corrections,
    latentOverlap,
  });

/** As `tpla rotate` does it. */
async function fit(exactTokens: ExactTokens, latentGroups: number, overlap = 0): Promise<void> {
  await using checkpoint = await openCheckpoint(model.path);
  const { heads: numHeads, nopeDim, valueDim, latentDim } = tinyMla;
  const shape: FitShape = {
    numHeads,
    nopeDim,
    valueDim,
    latentDim,
    latentGroups,
    hiddenDim: checkpoint.config.hiddenDim,
  };
  await using ranks = await start(exactTokens, latentGroups, '', overlap);
  const ask = async (request: object): Promise<(Float32Array | undefined)[]> => {
    const full = { kind: 'calibration', id: 1, ...request } as Parameters<LocalRanks['workers'][0]['answer']>[0];
    return await Promise.all(ranks.workers.map(async (worker) => (await worker.answer(full)).payload));
  };
  await ask({ action: 'begin', windows, refits: false });
  const layers = [];
  for (let layer = 0; layer < numLayers; layer++) {
    const payloads = (await ask({ action: 'statistics', layer })).map((payload) => payload!);
    layers.push(splitFit(Float32Array.from(joinSegments(payloads, windows.length)), shape));
  }
  await ask({ action: 'end' });
  const origin = {
    modelIdentity: checkpoint.identity,
    latentGroups,
    ...exactTokens,
    overlap,
    reparameterization: 'weighted',
    calibrationHash: 'test',
    without: '',
  };
  await writeFit(join(folder, fitFileName(latentGroups, exactTokens, overlap)), origin, shape, layers);
}

/** Mean divergence of decoded tokens from exact ones, over the windows that were fitted on. */
async function loss(ranks: LocalRanks): Promise<number> {
  await using exact = await startLocalRanks(model.path, 1, { backend: 'ggml', scheme: 'mla' });
  const kl: number[] = [];
  for (const tokens of windows) {
    const decoded = async (cluster: LocalRanks): Promise<Float32Array> => {
      const step = (phase: 'prefill' | 'decode', from: number, to: number) =>
        cluster.logits({
          phase,
          sequences: [{ slot: 0, start: from, tokens: tokens.slice(from, to) }],
          want: { kind: 'all' },
        });
      await step('prefill', 0, prompt);
      return await step('decode', prompt, tokens.length);
    };
    kl.push(...divergences(await decoded(ranks), await decoded(exact), tinyVocab));
  }
  return kl.reduce((sum, value) => sum + value, 0) / kl.length;
}

test.each([
  [2, { sinks: 0, window: 0 }, 0],
  [2, { sinks: 2, window: 8 }, 0],
  [3, { sinks: 2, window: 8 }, 0],
  [2, { sinks: 2, window: 8 }, 5],
  [3, { sinks: 0, window: 0 }, 3],
])('%i groups with %o and an overlap of %i lose less with corrections', async (latentGroups, exactTokens, overlap) => {
  await fit(exactTokens, latentGroups, overlap);
  await using plain = await start(exactTokens, latentGroups, '', overlap);
  await using corrected = await start(exactTokens, latentGroups, folder, overlap);
  const [before, after] = [await loss(plain), await loss(corrected)];
  expect(before).toBeGreaterThan(1e-3);
  expect(after).toBeLessThan(0.7 * before);
});

test('where every token is scored exactly, a fit changes nothing', async () => {
  const exactTokens = { sinks: 0, window: 80 };
  await fit(exactTokens, 2);
  await using corrected = await start(exactTokens, 2, folder);
  expect(await loss(corrected)).toBeLessThan(1e-6);
});

test('a fit for other sizes, or of another model, is refused', async () => {
  await fit({ sinks: 1, window: 4 }, 2);
  await expect(start({ sinks: 0, window: 5 }, 2, folder)).rejects.toThrow('tpla_fit_g2_w5_s0.safetensors is not there');
  await using other = await writeTinyMla({ ropeDim: 6 }, 9);
  const options = { scheme: 'tpla', exactTokens: { sinks: 1, window: 4 }, corrections: folder } as const;
  await expect(startLocalRanks(other.path, 2, options)).rejects.toThrow('modelIdentity is ');
});
