/** Fits corrections of scheme tpla as `tpla rotate` does, on ranks in this process, and says what a cut costs. */
import { join } from 'node:path';
import type { FitStep } from '../../config/schemes.ts';
import type { ExactTokens } from '../../config/shard-plan.ts';
import { joinSegments } from '../../collective/window-sums.ts';
import { openCheckpoint } from '../../model/open.ts';
import { fitFileName, splitFit, writeFit, type FitShape } from '../../model/tpla/decode-fit.ts';
import { divergences } from './divergence.ts';
import { startLocalRanks, type LocalRanks } from './local-ranks.ts';

/** A model, texts to fit it on and to judge it by, and where its corrections lie. */
export interface FitCase {
  readonly path: string;
  readonly windows: readonly number[][];
  /** Tokens of a window that are read exactly. */
  readonly prompt: number;
  readonly folder: string;
}

export interface CutSetting {
  readonly exactTokens: ExactTokens;
  readonly latentGroups: number;
  readonly overlap?: number;
}

/** @param corrections folder; '': none */
export function startCut(
  path: string,
  { exactTokens, latentGroups, overlap = 0 }: CutSetting,
  corrections = '',
): Promise<LocalRanks> {
  const latentOverlap = overlap;
  const options = { backend: 'ggml', scheme: 'tpla', latentGroups, exactTokens, corrections, latentOverlap } as const;
  return startLocalRanks(path, latentGroups, options);
}

/** Writes the corrections into the case's folder. */
export async function fitCorrections(
  { path, windows, folder }: FitCase,
  setting: CutSetting,
  without: readonly FitStep[] = [],
): Promise<void> {
  await using checkpoint = await openCheckpoint(path);
  const { attention, numHeads, hiddenDim, numLayers } = checkpoint.config;
  if (attention.kind !== 'mla') throw new Error(`${path}: no latent to cut`);
  const { nopeDim, valueDim, latentDim } = attention;
  const { latentGroups, overlap = 0 } = setting;
  const shape: FitShape = { numHeads, nopeDim, valueDim, latentDim, latentGroups, hiddenDim };
  await using ranks = await startCut(path, setting);
  const { exactTokens } = ranks.plan;
  const ask = async (request: object): Promise<(Float32Array | undefined)[]> => {
    const full = { kind: 'calibration', id: 1, ...request } as Parameters<LocalRanks['workers'][0]['answer']>[0];
    return await Promise.all(ranks.workers.map(async (worker) => (await worker.answer(full)).payload));
  };
  await ask({ action: 'begin', windows, refits: false, without });
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
    without: without.join(' '),
  };
  await writeFit(join(folder, fitFileName(latentGroups, exactTokens, overlap)), origin, shape, layers);
}

/** Mean divergence of decoded tokens from exact ones, over the windows that were fitted on. */
export async function lossOfCut({ path, windows, prompt }: FitCase, ranks: LocalRanks): Promise<number> {
  await using exact = await startLocalRanks(path, 1, { backend: 'ggml', scheme: 'mla' });
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
    const logits = await decoded(exact);
    kl.push(...divergences(await decoded(ranks), logits, logits.length / (tokens.length - prompt)));
  }
  return kl.reduce((sum, value) => sum + value, 0) / kl.length;
}
