/** Small steps that the programs of a calibration repeat. */
import { invariant } from '../../config/errors.ts';
import type { ModelConfig } from '../../config/model-config.ts';
import type { Ops, Tensor } from '../kernels/kernels.ts';
import { normed } from '../layer.ts';
import type { WholeLayer } from './whole-layer.ts';

/** The stream behind attention. @param x [T, D]  @param delta [T, D] attention's output with its bias */
export function afterAttention(ops: Ops, model: ModelConfig, layer: WholeLayer, x: Tensor, delta: Tensor): Tensor {
  const { postNorms } = layer;
  return ops.add(x, postNorms === undefined ? delta : normed(ops, delta, postNorms.attention, model.normEps));
}

/** The stream behind a dense feed-forward part. @param x [T, D] behind attention */
export function afterFeedForward(ops: Ops, model: ModelConfig, layer: WholeLayer, x: Tensor): Tensor {
  const { postNorms } = layer;
  const h = normed(ops, x, layer.feedForwardNorm, model.normEps);
  const gated = ops.gated(ops.matmul(layer.gate, h), ops.matmul(layer.up, h), model.feedForward.activation);
  const delta = ops.matmul(layer.down, gated);
  return ops.add(x, postNorms === undefined ? delta : normed(ops, delta, postNorms.feedForward, model.normEps));
}

/** The heads of [heads, T, T], one by one: [1, T, T] each. */
export function headsOf(ops: Ops, x: Tensor): Tensor[] {
  return Array.from({ length: dim(x, 0) }, (_, head) => ops.slice(x, 0, head, 1));
}

/**
 * Sums over m of x [1, m, n]: attention with equal shares is the mean over rows, and needs no transposed copy.
 * @param zeros at least m  @returns [1, 1, n]
 */
export function sumOverRows(ops: Ops, zeros: Tensor, x: Tensor): Tensor {
  const rows = dim(x, 1);
  const none = ops.contiguous(ops.slice(zeros, 0, 0, rows));
  const mask = ops.reshape(none, [1, rows]);
  const mean = ops.attendScores(ops.reshape(none, [1, 1, rows]), x, mask, { scale: 1, softcap: 0 });
  return ops.scale(mean, rows);
}

export function sumOf(ops: Ops, parts: readonly Tensor[]): Tensor {
  const [first, ...rest] = parts;
  invariant(first !== undefined, 'a sum of nothing');
  return rest.reduce((sum, part) => ops.add(sum, part), first);
}

export function dim(x: Tensor, axis: number): number {
  const length = x.shape[axis];
  invariant(length !== undefined, `axis ${axis} of a tensor of shape [${x.shape.join(', ')}]`);
  return length;
}

/** w times the square of d capped / d score. @param tanh [count, m, t]: tanh(score / cap) */
export function timesSlope(ops: Ops, w: Tensor, tanh: Tensor): Tensor {
  const lost = ops.scale(ops.multiply(tanh, tanh), -1);
  const once = ops.add(w, ops.multiply(w, lost));
  return ops.add(once, ops.multiply(once, lost));
}

/** [T, heads, n] -> [heads, T, n] */
export function byHead(ops: Ops, x: Tensor): Tensor {
  return ops.contiguous(ops.permute(x, [1, 0, 2]));
}
