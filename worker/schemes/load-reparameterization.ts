/**
 * What a rank does to the latent and to decode before it loads its weights: the rotation of every layer, and the corrections
 * of cut attention where the setup names a folder of them. Read next: worker/weights.ts.
 */
import type { Setup } from '../../collective/setup.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { readFit, type LayerFit } from '../../model/tpla/decode-fit.ts';
import { loadRotations } from '../../model/tpla/rotation.ts';

export interface LoadedReparameterization {
  /** U [r, r] per layer, or undefined where the latent stays as it is. */
  readonly rotations: readonly (Float32Array | undefined)[];
  readonly fits: readonly LayerFit[] | undefined;
}

/** @throws ConfigError when a file is needed and missing, or is one of another model or setting */
export async function loadReparameterization(setup: Setup, checkpoint: Checkpoint): Promise<LoadedReparameterization> {
  const { modelPath, options } = setup;
  const fits = await fitsOf(setup, checkpoint);
  // The fit has chosen the order of the columns itself.
  if (fits !== undefined && options.reparameterization === 'weighted')
    return { rotations: fits.map(({ rotation }) => rotation), fits };
  return { rotations: await loadRotations(modelPath, checkpoint.config, options.reparameterization), fits };
}

async function fitsOf({ plan, options }: Setup, checkpoint: Checkpoint): Promise<LayerFit[] | undefined> {
  const { config: model, identity } = checkpoint;
  if (options.corrections === '' || model.attention.kind !== 'mla') return undefined;
  const { nopeDim, valueDim, latentDim } = model.attention;
  const { latentGroups, exactTokens } = plan;
  const { numHeads, hiddenDim, numLayers } = model;
  return await readFit({
    folder: options.corrections,
    modelIdentity: identity,
    reparameterization: options.reparameterization,
    exactTokens,
    overlap: plan.ranks[0]?.sharedLatent.end ?? 0,
    shape: { numHeads, nopeDim, valueDim, latentDim, latentGroups, hiddenDim },
    numLayers,
  });
}
