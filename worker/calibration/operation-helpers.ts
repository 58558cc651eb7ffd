/** Small steps that the programs of a calibration repeat. */
import { invariant } from '../../config/errors.ts';
import type { Ops, Tensor } from '../kernels/kernels.ts';

/** The heads of [heads, T, T], one by one: [1, T, T] each. */
export function headsOf(ops: Ops, x: Tensor): Tensor[] {
  return Array.from({ length: dim(x, 0) }, (_, head) => ops.slice(x, 0, head, 1));
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
