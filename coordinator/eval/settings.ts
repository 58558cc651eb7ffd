/** Everything about model and cluster that a measured result depends on: part of every report, and of a resumed run's state. */
import type { Checkpoint } from '../../model/checkpoint.ts';
import type { Layout } from '../cluster-layout.ts';

export function schemeSettings(checkpoint: Checkpoint, { plan, options }: Layout) {
  const { backend, weights, cacheType, contextTokens, reparameterization, corrections, prefill, norm } = options;
  return {
    model: checkpoint.path,
    modelIdentity: checkpoint.identity,
    scheme: plan.scheme,
    ranks: plan.worldSize,
    latentGroups: plan.latentGroups,
    exactTokens: plan.exactTokens,
    overlap: plan.ranks[0]?.sharedLatent.end ?? 0,
    reparameterization,
    corrections,
    prefill,
    norm,
    backend,
    weights,
    cacheType,
    contextTokens,
  };
}
