/**
 * Scheme tpla with corrections: a fit (model/tpla/decode-fit.ts) takes the place of W_UK and W_UV in decode, this rank's
 * heads and latent columns of it. Prefill keeps the matrices of the model. Read next: windowed.ts.
 */
import { invariant } from '../../config/errors.ts';
import type { ModelConfig } from '../../config/model-config.ts';
import { latentWidth, size, type RankPlan, type ShardPlan } from '../../config/shard-plan.ts';
import type { LayerFit } from '../../model/tpla/decode-fit.ts';
import type { MlaProjection } from '../mla-weights.ts';
import type { WeightUploader } from '../weight-uploader.ts';

/** The projection of decode, corrected. @param plain as loaded for the same rank and layer */
export function corrected(
  plain: MlaProjection,
  { attention: config, numHeads }: ModelConfig,
  plan: ShardPlan,
  rankPlan: RankPlan,
  uploader: WeightUploader,
  layer: number,
  fit: LayerFit,
): MlaProjection {
  invariant(config.kind === 'mla', 'a fit of a model without a latent');
  const { rank, heads, latent, sharedLatent } = rankPlan;
  const { nopeDim, valueDim, latentDim } = config;
  const count = size(heads);
  const width = latentWidth(rankPlan);
  const group = Math.floor((rank * plan.latentGroups) / plan.worldSize);
  // A fit has the columns of all groups side by side, those that every group keeps in each.
  const first = latent.start + (group - 1) * size(sharedLatent);
  const keys = new Float32Array(count * width * nopeDim); // [heads, latentShard, n]
  const values = new Float32Array(count * valueDim * width); // [heads, v, latentShard]
  const slope = new Float32Array(count * nopeDim); // [heads, 1, n]
  const offset = new Float32Array(count); // [heads]
  for (let h = 0; h < count; h++) {
    const head = heads.start + h;
    const firstKey = (head * latentDim + first) * nopeDim;
    keys.set(fit.keys.subarray(firstKey, firstKey + width * nopeDim), h * width * nopeDim);
    for (let i = 0; i < valueDim; i++) {
      const firstValue = (head * valueDim + i) * latentDim + first;
      values.set(fit.values.subarray(firstValue, firstValue + width), (h * valueDim + i) * width);
    }
    const firstOffset = (group * numHeads + head) * (nopeDim + 1);
    slope.set(fit.offsets.subarray(firstOffset, firstOffset + nopeDim), h * nopeDim);
    offset[h] = fit.offsets[firstOffset + nopeDim] ?? 0;
  }
  const type = uploader.floatTypeFor('latentUp', layer);
  const keyUp = uploader.floatTensor(keys, [count, width, nopeDim], type);
  const valueUp = uploader.floatTensor(values, [count, valueDim, width], type);
  const { sinks, window } = plan.exactTokens;
  if (sinks + window === 0) return { ...plain, keyUp, valueUp };
  const old = { keyUp, slope: uploader.floatTensor(slope, [count, 1, nopeDim], type), offset: uploader.values(offset) };
  return { ...plain, ...(config.near && { keyUp }), valueUp, old };
}
