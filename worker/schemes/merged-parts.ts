/** Softmax over two parts of a sequence from the softmax of each (online softmax, arXiv 1805.02867, section 3). */
import type { MlaConfig } from '../../config/model-config.ts';
import { dim } from '../attention.ts';
import type { Ops, PartialAttention, Tensor } from '../kernels/kernels.ts';

/**
 * Each part counts exp(logSumExp).
 * @param even [length, 2] zeros: the mask of a softmax that hides neither part  @returns [heads, length, columns]
 */
export function mergedByLogSumExp(ops: Ops, a: PartialAttention, b: PartialAttention, even: Tensor): Tensor {
  const [heads, length] = [dim(a.out, 0), dim(a.out, 1)];
  const column = (x: Tensor): Tensor => ops.reshape(x, [heads, length, 1]);
  return mixedBy(ops, ops.softmax(ops.concat([column(a.logSumExp), column(b.logSumExp)], 2), even, 1), a.out, b.out);
}

/** @param shares of both parts, [heads, length, 2]  @param a, b [heads, length, columns]  @returns the same */
export function mixedBy(ops: Ops, shares: Tensor, a: Tensor, b: Tensor): Tensor {
  const [heads, length, columns] = [dim(a, 0), dim(a, 1), dim(a, 2)];
  const row = (x: Tensor): Tensor => ops.reshape(x, [heads * length, columns, 1]);
  const outs = ops.concat([row(a), row(b)], 2); // [heads * length, columns, 2]
  const mixed = ops.matmul(outs, ops.reshape(shares, [heads * length, 1, 2])); // [heads * length, 1, columns]
  return ops.reshape(mixed, [heads, length, columns]);
}

/** Adds to all scores of a query what the missing columns give on average. @param nope [heads, length, n], a view, or packed */
export function moved(
  ops: Ops,
  config: MlaConfig,
  { slope, offset }: { readonly slope: Tensor; readonly offset?: Tensor | undefined },
  nope: Tensor,
  part: PartialAttention,
): PartialAttention {
  const linear = linearOffset(ops, config, slope, nope);
  if (offset === undefined) return { out: part.out, logSumExp: ops.add(part.logSumExp, linear) };
  const byToken = ops.contiguous(ops.permute(linear, [1, 0]));
  const all = ops.contiguous(ops.permute(ops.add(byToken, offset), [1, 0])); // [heads, length]
  return { out: part.out, logSumExp: ops.add(part.logSumExp, all) };
}

/** @param slope [heads, 1, n]  @param nope [heads, length, n], a view, or packed  @returns [heads, length] */
export function linearOffset(ops: Ops, { scoreScale }: MlaConfig, slope: Tensor, nope: Tensor): Tensor {
  const [heads, length] = [dim(nope, 0), dim(nope, 1)];
  return ops.reshape(ops.scale(ops.matmul(slope, ops.contiguous(nope)), scoreScale), [heads, length]);
}
