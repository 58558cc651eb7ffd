/** Starts a real cluster, processes and sockets included, on a model and flags as a command would. */
import { loadClusterConfig, type ClusterFlags } from '../../config/load.ts';
import { Cluster } from '../../coordinator/cluster.ts';
import { openCheckpoint } from '../../model/open.ts';

export interface StartedCluster extends AsyncDisposable {
  readonly cluster: Cluster;
}

export async function startCluster(
  model: string,
  { slots, ...flags }: Omit<ClusterFlags, 'model'> & { readonly slots?: number },
): Promise<StartedCluster> {
  const checkpoint = await openCheckpoint(model);
  const loaded = await loadClusterConfig({ flags: { ...flags, model } });
  const config = { ...loaded, cache: { ...loaded.cache, slots: slots ?? loaded.cache.slots } };
  const cluster = await Cluster.start({ checkpoint, config, log: () => undefined });
  return {
    cluster,
    async [Symbol.asyncDispose]() {
      await cluster[Symbol.asyncDispose]();
      await checkpoint[Symbol.asyncDispose]();
    },
  };
}

/** Prefills `prompt` in a fresh slot, then decodes `steps` greedy tokens. @returns ids and the logits of each step. */
export async function greedy(
  cluster: Cluster,
  prompt: readonly number[],
  steps: number,
): Promise<{ ids: number[]; logits: Float32Array[] }> {
  const ids: number[] = [];
  const logits: Float32Array[] = [];
  let tokens = [...prompt];
  let start = 0;
  for (let step = 0; step < steps; step++) {
    const result = await cluster.step({
      phase: step === 0 ? 'prefill' : 'decode',
      sequences: [{ slot: 0, start, tokens }],
      want: { kind: 'last' },
    });
    start += tokens.length;
    tokens = [argmax(result.logits)];
    ids.push(...tokens);
    logits.push(result.logits);
  }
  return { ids, logits };
}

export function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}
