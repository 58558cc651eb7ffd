/** The attention of an unconverted layer over a whole window, in one operation. Read next: refit-programs.ts. */
import type { GqaConfig, ModelConfig } from '../../config/model-config.ts';
import type { Ops, Tensor } from '../kernels/kernels.ts';
import { normed } from '../layer.ts';
import { byHead, dim } from './operation-helpers.ts';
import type { WholeLayer } from './whole-layer.ts';

interface Constants {
  readonly mask: Tensor; // [T, T]
  readonly positions: Tensor; // [T] i32
  readonly frequencies: Tensor; // [d / 2]
}

/** @param x [T, D]  @returns the heads' outputs [H, T, d] */
export function originalHeads(
  ops: Ops,
  { normEps, rope }: ModelConfig,
  { headDim, scoreScale, scoreSoftcap }: GqaConfig,
  layer: WholeLayer,
  x: Tensor,
  { mask, positions, frequencies }: Constants,
): Tensor {
  const { attentionFactor } = rope;
  const h = normed(ops, x, layer.attentionNorm, normEps);
  const project = (weight: Tensor, bias: Tensor): Tensor => {
    const flat = ops.add(ops.matmul(weight, h), bias);
    return ops.reshape(flat, [dim(flat, 0), dim(flat, 1) / headDim, headDim]);
  };
  const rotated = (part: Tensor): Tensor =>
    byHead(ops, ops.rope(part, positions, frequencies, { interleaved: false, attentionFactor }));
  return ops.attend(
    rotated(project(layer.query, layer.queryBias)),
    rotated(project(layer.key, layer.keyBias)),
    byHead(ops, project(layer.value, layer.valueBias)),
    mask,
    { scale: scoreScale, softcap: scoreSoftcap },
  );
}
