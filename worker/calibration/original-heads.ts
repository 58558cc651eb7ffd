/** The attention of an unconverted layer over a whole window. Read next: refit-programs.ts. */
import type { GqaConfig, ModelConfig } from '../../config/model-config.ts';
import { cut } from '../../config/shard-plan.ts';
import type { Ops, Tensor } from '../kernels/kernels.ts';
import { normed } from '../layer.ts';
import { byHead, dim } from './operation-helpers.ts';
import type { WholeLayer } from './whole-layer.ts';

interface Constants {
  readonly mask: Tensor; // [T, T]
  readonly positions: Tensor; // [T] i32
  readonly frequencies: Tensor; // [d / 2]
}

/** Queries of one block read no key behind it: 5 in 8 of all pairs. */
const blocksOfWindow = 4;

/** @param x [T, D]  @param heads allocated, their outputs [T, H d], overwritten */
export function originalHeads(
  ops: Ops,
  { normEps, rope }: ModelConfig,
  { headDim, scoreScale, scoreSoftcap }: GqaConfig,
  layer: WholeLayer,
  x: Tensor,
  { mask, positions, frequencies }: Constants,
  heads: Tensor,
): void {
  const { attentionFactor } = rope;
  const tokens = dim(x, 0);
  const h = normed(ops, x, layer.attentionNorm, normEps);
  const project = (weight: Tensor, bias: Tensor): Tensor => {
    const flat = ops.add(ops.matmul(weight, h), bias);
    return ops.reshape(flat, [tokens, dim(flat, 1) / headDim, headDim]);
  };
  const rotated = (part: Tensor): Tensor =>
    byHead(ops, ops.rope(part, positions, frequencies, { interleaved: false, attentionFactor }));
  const q = rotated(project(layer.query, layer.queryBias));
  const k = rotated(project(layer.key, layer.keyBias));
  const v = byHead(ops, project(layer.value, layer.valueBias));
  for (const { start, end } of cut(tokens, new Array<number>(Math.min(blocksOfWindow, tokens)).fill(1), 1)) {
    const rows = end - start;
    const out = ops.attend(
      ops.contiguous(ops.slice(q, 1, start, rows)),
      ops.slice(k, 1, 0, end),
      ops.slice(v, 1, 0, end),
      ops.contiguous(ops.slice(ops.slice(mask, 0, start, rows), 1, 0, end)),
      { scale: scoreScale, softcap: scoreSoftcap },
    ); // [H, m, d]
    const flat = ops.reshape(ops.contiguous(ops.permute(out, [1, 0, 2])), [rows, dim(heads, 1)]);
    ops.copyTo(ops.slice(heads, 0, start, rows), flat);
  }
}
