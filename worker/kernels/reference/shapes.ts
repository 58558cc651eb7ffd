/**
 * What each operation accepts and the shape it returns; anything else is an InvariantError that names the operation
 * and the shapes. Used by the reference and gpujs backends. Next: ops.ts (the loops).
 */
import { invariant } from '../../../config/errors.ts';
import type { Tensor, TensorType } from '../kernels.ts';

type Shape = readonly number[];

export function matmulShape(weight: Tensor, x: Tensor): Shape {
  const w = weight.shape;
  const a = x.shape;
  invariant(
    (w.length === 2 || w.length === 3) && a.length === w.length && w.at(-1) === a.at(-1),
    `matmul: weight [${w.join(', ')}] and x [${a.join(', ')}], expected [m, k] and [t, k] or [bw, m, k] and [bx, t, k]`,
  );
  expectType('matmul: weight', weight, ['f32', 'f16', 'bf16']);
  expectType('matmul: x', x, ['f32']);
  if (w.length === 2) return [a[0]!, w[0]!];
  expectGroups('matmul: batches of x', a[0]!, 'batches of weight', w[0]!);
  return [a[0]!, a[1]!, w[1]!];
}

export function expertMatmulShape(weights: Tensor, x: Tensor, ids: Tensor): Shape {
  const [, rows, columns] = weights.shape;
  const [tokens, slots] = ids.shape;
  invariant(
    weights.shape.length === 3 &&
      ids.shape.length === 2 &&
      (sameShape(x.shape, [tokens!, slots!, columns!]) || sameShape(x.shape, [tokens!, 1, columns!])),
    `expertMatmul: weights [${weights.shape.join(', ')}], x [${x.shape.join(', ')}], ids [${ids.shape.join(', ')}], ` +
      `expected [e, m, k], [t, j or 1, k], [t, j]`,
  );
  expectType('expertMatmul: weights', weights, ['f32', 'f16', 'bf16']);
  expectType('expertMatmul: x', x, ['f32']);
  expectType('expertMatmul: ids', ids, ['i32']);
  return [tokens!, slots!, rows!];
}

export function weightedSumShape(x: Tensor, shares: Tensor): Shape {
  const [tokens, slots, columns] = x.shape;
  invariant(
    x.shape.length === 3 && sameShape(shares.shape, [tokens!, slots!]),
    `weightedSum: x [${x.shape.join(', ')}] and shares [${shares.shape.join(', ')}], expected [t, j, m] and [t, j]`,
  );
  expectType('weightedSum: x', x, ['f32']);
  expectType('weightedSum: shares', shares, ['f32']);
  return [tokens!, columns!];
}

export function broadcastShape(name: string, a: Tensor, b: Tensor): Shape {
  const trailing = a.shape.slice(a.shape.length - b.shape.length);
  invariant(
    b.shape.length <= a.shape.length && sameShape(trailing, b.shape),
    `${name}: b [${b.shape.join(', ')}] is neither [${a.shape.join(', ')}] nor its trailing axes`,
  );
  expectType(`${name}: a`, a, ['f32']);
  expectType(`${name}: b`, b, ['f32']);
  return a.shape;
}

export function gatedShape(gate: Tensor, up: Tensor): Shape {
  invariant(
    sameShape(gate.shape, up.shape),
    `gated: gate [${gate.shape.join(', ')}] and up [${up.shape.join(', ')}] differ`,
  );
  return broadcastShape('gated', gate, up);
}

export function checkCopy(target: Tensor, x: Tensor): void {
  invariant(
    sameShape(target.shape, x.shape),
    `copyTo: target [${target.shape.join(', ')}] and x [${x.shape.join(', ')}] differ`,
  );
  expectType('copyTo: target', target, ['f32', 'f16']);
  expectType('copyTo: x', x, ['f32']);
}

export function ropeShape(x: Tensor, positions: Tensor, frequencies: Tensor): Shape {
  const [tokens, , dim] = x.shape;
  invariant(
    x.shape.length === 3 && sameShape(positions.shape, [tokens!]) && sameShape(frequencies.shape, [dim! / 2]),
    `rope: x [${x.shape.join(', ')}], positions [${positions.shape.join(', ')}], frequencies [${frequencies.shape.join(', ')}], ` +
      `expected [tokens, heads, dim], [tokens], [dim / 2]`,
  );
  expectType('rope: x', x, ['f32']);
  expectType('rope: positions', positions, ['i32']);
  expectType('rope: frequencies', frequencies, ['f32']);
  return x.shape;
}

/** @param masks whether each batch of keys may have a mask of its own */
export function attendShape(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor): Shape {
  const [heads, tokens, keyDim] = q.shape;
  const [groups, length] = keys.shape;
  const valueDim = values.shape[2];
  invariant(
    q.shape.length === 3 &&
      sameShape(keys.shape, [groups!, length!, keyDim!]) &&
      sameShape(values.shape, [groups!, length!, valueDim!]) &&
      (sameShape(mask.shape, [tokens!, length!]) || sameShape(mask.shape, [groups!, tokens!, length!])),
    `attend: q [${q.shape.join(', ')}], keys [${keys.shape.join(', ')}], values [${values.shape.join(', ')}], mask [${mask.shape.join(', ')}], ` +
      `expected [h, t, dk], [g, s, dk], [g, s, dv], [t, s] or [g, t, s]`,
  );
  expectType('attend: q', q, ['f32']);
  expectType('attend: keys', keys, ['f32', 'f16']);
  expectType('attend: values', values, ['f32', 'f16']);
  expectType('attend: mask', mask, ['f32']);
  expectGroups('attend: heads of q', heads!, 'heads of keys', groups!);
  return [heads!, tokens!, valueDim!];
}

export function attendScoresShape(scores: Tensor, values: Tensor, mask: Tensor): Shape {
  const [heads, tokens, length] = scores.shape;
  const [groups, , valueDim] = values.shape;
  invariant(
    scores.shape.length === 3 &&
      sameShape(values.shape, [groups!, length!, valueDim!]) &&
      sameShape(mask.shape, [tokens!, length!]),
    `attendScores: scores [${scores.shape.join(', ')}], values [${values.shape.join(', ')}], mask [${mask.shape.join(', ')}], ` +
      `expected [h, t, s], [g, s, dv], [t, s]`,
  );
  expectType('attendScores: scores', scores, ['f32']);
  expectType('attendScores: values', values, ['f32', 'f16']);
  expectType('attendScores: mask', mask, ['f32']);
  expectGroups('attendScores: heads of scores', heads!, 'heads of values', groups!);
  return [heads!, tokens!, valueDim!];
}

export function softmaxShape(x: Tensor, mask: Tensor): Shape {
  invariant(
    x.shape.length === 3 && sameShape(mask.shape, x.shape.slice(1)),
    `softmax: x [${x.shape.join(', ')}], mask [${mask.shape.join(', ')}], expected [h, t, s], [t, s]`,
  );
  expectType('softmax: x', x, ['f32']);
  expectType('softmax: mask', mask, ['f32']);
  return x.shape;
}

export function checkScatter(target: Tensor, rows: Tensor, indices: Tensor): void {
  invariant(
    target.shape.length === 2 && sameShape(rows.shape, [indices.shape[0]!, target.shape[1]!]),
    `scatterRows: target [${target.shape.join(', ')}], rows [${rows.shape.join(', ')}], indices [${indices.shape.join(', ')}], expected [n, d], [t, d], [t]`,
  );
  expectType('scatterRows: target', target, ['f32', 'f16']);
  expectType('scatterRows: rows', rows, ['f32']);
  expectType('scatterRows: indices', indices, ['i32']);
}

export function gatherShape(table: Tensor, indices: Tensor): Shape {
  invariant(
    table.shape.length === 2 && indices.shape.length === 1,
    `gatherRows: table [${table.shape.join(', ')}], indices [${indices.shape.join(', ')}], expected [v, d], [t]`,
  );
  expectType('gatherRows: table', table, ['f32', 'f16', 'bf16']);
  expectType('gatherRows: indices', indices, ['i32']);
  return [indices.shape[0]!, table.shape[1]!];
}

export function concatShape(parts: readonly Tensor[], axis: number): Shape {
  const first = parts[0]?.shape;
  invariant(first !== undefined && axis < first.length, `concat: ${parts.length} parts along axis ${axis}`);
  let length = 0;
  for (const part of parts) {
    const size = part.shape[axis];
    invariant(
      size !== undefined && sameShape(part.shape, first.with(axis, size)),
      `concat: [${part.shape.join(', ')}] does not fit [${first.join(', ')}] along axis ${axis}`,
    );
    expectType('concat: part', part, ['f32']);
    length += size;
  }
  return first.with(axis, length);
}

export function expectType(what: string, tensor: Tensor, types: readonly TensorType[]): void {
  invariant(types.includes(tensor.type), `${what} is ${tensor.type}, expected ${types.join(' or ')}`);
}

function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}

/** A member reads group floor(member * groups / members), which is even only for multiples. */
function expectGroups(what: string, members: number, whatGroups: string, groups: number): void {
  invariant(
    members === 0 || (groups > 0 && members % groups === 0),
    `${what}: ${members} is no multiple of ${groups} ${whatGroups}`,
  );
}
