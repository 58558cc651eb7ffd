/**
 * Clusters for calibrating and for measuring, and perplexity over windows. Every measurement of a conversion uses the
 * same ranks and the same windows, each alone from position 0, its first token not scored.
 */
import { type ClusterConfig, clusterSchema } from '../../config/cluster.ts';
import type { Scheme } from '../../config/schemes.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { Cluster } from '../cluster.ts';
import { score } from '../engine.ts';
import { startProgress } from '../progress.ts';
import type { CalibrationText, WindowCounts } from './calibration-text.ts';
import type { ConversionOptions } from './conversion-options.ts';

/** Most windows that the model writes beside each other: their caches have to fit in memory. */
const maxSlots = 16;

export function startCluster(
  checkpoint: Checkpoint,
  options: ConversionOptions,
  scheme: Scheme,
  counts: WindowCounts,
): Promise<Cluster> {
  const { compute, collective, ranks } = options.cluster;
  const config: ClusterConfig = clusterSchema.parse({
    model: checkpoint.path,
    attention: { scheme },
    // Statistics and comparisons should not depend on how a cache happens to be stored.
    cache: {
      type: 'f32',
      contextTokens: counts.length,
      slots: Math.min(maxSlots, counts.calibration + counts.heldOut),
    },
    compute: { ...compute, maxStepTokens: counts.length },
    // Hours of work are not given up because a loaded machine answers late; a process that ends is noticed at once.
    faults: { heartbeatMs: 5000 },
    collective,
    ranks,
  });
  const { log, signal } = options;
  return Cluster.start({ checkpoint, config, log, ...(signal === undefined ? {} : { signal }) });
}

/** Perplexity of the checkpoint in a folder, attention exact. */
export async function measure(
  folder: string,
  options: ConversionOptions,
  windows: CalibrationText['heldOut'],
  label: string,
): Promise<number> {
  await using checkpoint = await openCheckpoint(folder);
  const counts = { length: Math.max(...windows.map((window) => window.length)), calibration: 0, heldOut: 1 };
  await using cluster = await startCluster(checkpoint, options, 'mla', counts);
  return await perplexity(cluster, windows, `measure ${label}`);
}

/** exp of the mean negative log-likelihood of every token but the first of each window. */
export async function perplexity(
  cluster: Cluster,
  windows: CalibrationText['heldOut'],
  label: string,
): Promise<number> {
  using progress = startProgress(label, windows.length, { name: 'windows', size: 1 });
  let sum = 0;
  let tokens = 0;
  for (const [i, ids] of windows.entries()) {
    sum += (await score(cluster, { ids, decodeFrom: ids.length })).reduce((a, b) => a + b, 0);
    tokens += ids.length - 1;
    progress.update(i + 1);
  }
  return Math.exp(sum / tokens);
}
