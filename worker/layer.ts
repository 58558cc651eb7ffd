/**
 * One transformer layer, written once for every family and backend, as programs that run between two sums over ranks:
 * attention (norm, attention, output projection) and feedForward (norm, gated product, down projection). Each yields a
 * partial delta [tokens, hidden]: this rank's share, which forward.ts sums and adds to the residual stream.
 * Read next: attention.ts.
 */
import type { ModelConfig } from '../config/model-config.ts';
import { attendGqa } from './attention-gqa.ts';
import type { AttentionInputs } from './attention-inputs.ts';
import { attendMla } from './attention.ts';
import { denseDelta } from './feed-forward.ts';
import type { Ops, Tensor } from './kernels/kernels.ts';
import type { LayerCache } from './latent-cache.ts';
import { attendNear } from './schemes/near-heads.ts';
import { attendWindowed } from './schemes/windowed.ts';
import type { LayerWeights } from './weights.ts';

/** @param x [tokens, hidden]  @returns partial delta [tokens, hidden]; undefined: this rank has no part in it */
export function attentionDelta(
  ops: Ops,
  model: ModelConfig,
  weights: LayerWeights,
  cache: LayerCache,
  x: Tensor,
  inputs: AttentionInputs,
): Tensor | undefined {
  const attention = weights.attention;
  if (attention === undefined) return undefined;
  const h = normed(ops, x, weights.attentionNorm, model.normEps);
  switch (attention.kind) {
    case 'gqa':
      return attendGqa(ops, model, attention, cache, h, inputs);
    case 'mla':
      if (attention.near !== undefined) return attendNear(ops, model, attention, attention.near, cache, h, inputs);
      // Staged latents are whole: nothing is left to score more exactly.
      if (inputs.recent !== undefined && inputs.staging === undefined)
        return attendWindowed(ops, model, attention, cache, h, inputs);
      return attendMla(ops, model, attention, cache, h, inputs);
  }
}

/** @param x [tokens, hidden]  @returns partial delta [tokens, hidden]; undefined: this rank has no columns, or the layer routes to experts */
export function feedForwardDelta(ops: Ops, model: ModelConfig, weights: LayerWeights, x: Tensor): Tensor | undefined {
  const feedForward = weights.feedForward;
  if (feedForward === undefined) return undefined;
  const h = normed(ops, x, weights.feedForwardNorm, model.normEps);
  return denseDelta(ops, model, feedForward, h);
}

/** RMSNorm with its gain. @param x [tokens, hidden]  @param gain [hidden] */
export function normed(ops: Ops, x: Tensor, gain: Tensor, eps: number): Tensor {
  return ops.multiply(ops.rmsNorm(x, eps), gain);
}
