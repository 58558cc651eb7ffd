/**
 * The operations of kernels.ts as ggml nodes. Checks what ggml would end the process for, then names the node. Where
 * ggml has no exact counterpart (gelu by table, rotation by frequency) the operation is put together from several nodes.
 * An index of scatterRows or gatherRows outside its matrix ends the process: callers check token ids and positions.
 * Next: graph.ts (recording), attend.ts, compound.ts.
 */
import { attend, columnsOf, attendPartial, attendScores, type Attention, type PartialAttention } from './attend.ts';
import { expertMatmul, weightedSum } from './experts.ts';
import { capped, concat, geluTanh, reciprocal, rotate, softMax, type Constants } from './compound.ts';
import { product } from './products.ts';
import {
  MAX_AXES,
  STORAGE,
  check,
  checkShape,
  describe,
  elements,
  hasContiguousRows,
  isContiguous,
  isRepacked,
  type GgmlTensor,
} from './tensor.ts';
import type { AttendOptions, Ops, RopeOptions, Tensor } from '../kernels.ts';
import type { GraphRecorder } from './graph.ts';

export class GgmlOps implements Ops {
  readonly #recorder: GraphRecorder;
  readonly #constants: Constants;
  readonly #reciprocals = new Map<GgmlTensor, GgmlTensor>();

  constructor(recorder: GraphRecorder, constants: Constants) {
    this.#recorder = recorder;
    this.#constants = constants;
  }

  matmul(weight: Tensor, x: Tensor): Tensor {
    const w = this.#recorder.ownWeight(weight);
    const input = isRepacked(w) ? this.#packed('matmul: x', x) : this.#rows('matmul: x', x);
    return product(this.#recorder, this.#constants, w, input);
  }

  expertMatmul(weights: Tensor, x: Tensor, ids: Tensor): Tensor {
    const recorder = this.#recorder;
    const input = this.#packed('expertMatmul: x', x);
    return expertMatmul(recorder, this.#constants, recorder.own(weights), input, recorder.packed(recorder.own(ids)));
  }

  weightedSum(x: Tensor, shares: Tensor): Tensor {
    const input = this.#packed('weightedSum: x', x);
    return weightedSum(this.#recorder, this.#constants, input, this.#packed('weightedSum: shares', shares));
  }

  add(a: Tensor, b: Tensor): Tensor {
    const [left, right] = this.#broadcast('add', a, b);
    return this.#recorder.emit('f32', a.shape, (c, f) => f.add(c, left.pointer, right.pointer));
  }

  multiply(a: Tensor, b: Tensor): Tensor {
    const [left, right] = this.#broadcast('multiply', a, b);
    return this.#recorder.emit('f32', a.shape, (c, f) => f.mul(c, left.pointer, right.pointer));
  }

  scale(x: Tensor, factor: number): Tensor {
    const input = this.#packed('scale: x', x);
    return this.#recorder.emit('f32', x.shape, (c, f) => f.scale(c, input.pointer, factor));
  }

  rmsNorm(x: Tensor, eps: number): Tensor {
    const input = this.#rows('rmsNorm: x', x);
    return this.#recorder.emit('f32', x.shape, (c, f) => f.rmsNorm(c, input.pointer, eps));
  }

  rope(x: Tensor, positions: Tensor, frequencies: Tensor, options: RopeOptions): Tensor {
    const input = this.#rows('rope: x', x);
    const [tokens, , dim] = x.shape;
    const at = (): string => `rope of ${describe(x)} by ${describe(positions)} and ${describe(frequencies)}`;
    check(x.shape.length === 3 && dim! % 2 === 0, () => `${at()}: expected [tokens, heads, even dim]`);
    check(
      positions.type === 'i32' && sameShape(positions.shape, [tokens!]),
      () => `${at()}: expected positions i32 [${tokens}]`,
    );
    check(sameShape(frequencies.shape, [dim! / 2]), () => `${at()}: expected frequencies f32 [${dim! / 2}]`);
    const reciprocals = this.#reciprocal(frequencies);
    const index = this.#recorder.packed(this.#recorder.own(positions));
    return rotate(this.#recorder, input, index, reciprocals, options);
  }

  gated(gate: Tensor, up: Tensor, activation: 'silu' | 'gelu-tanh'): Tensor {
    const at = (): string => `gated: gate ${describe(gate)} and up ${describe(up)}`;
    check(sameShape(gate.shape, up.shape), () => `${at()} differ in shape`);
    const [g, u] = [this.#packed('gated: gate', gate), this.#packed('gated: up', up)];
    if (activation === 'silu') return this.#recorder.emit('f32', g.shape, (c, f) => f.swiglu(c, g.pointer, u.pointer));
    return this.multiply(geluTanh(this.#recorder, g), u);
  }

  softcap(x: Tensor, softcap: number): Tensor {
    const input = this.#packed('softcap: x', x);
    return capped(this.#recorder, input, 1, softcap);
  }

  attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, options: AttendOptions): Tensor {
    const own = this.#recorder.own(values);
    const kept = columnsOf(own) === undefined ? this.#recorder.withContiguousRows(own) : own;
    return attend(this.#recorder, this.#attention(q, keys, kept, mask, options));
  }

  attendPartial(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, options: AttendOptions): PartialAttention {
    const rows = this.#recorder.withContiguousRows(this.#recorder.own(values));
    return attendPartial(this.#recorder, this.#attention(q, keys, rows, mask, options));
  }

  attendScores(scores: Tensor, values: Tensor, mask: Tensor, options: AttendOptions): Tensor {
    const packed = this.#packed('attendScores: scores', scores);
    const rows = this.#recorder.withContiguousRows(this.#recorder.own(values));
    return attendScores(this.#recorder, packed, this.#mixture(rows, mask, options));
  }

  softmax(x: Tensor, mask: Tensor, scale: number): Tensor {
    const input = this.#packed('softmax: x', x);
    const added = this.#packed('softmax: mask', mask);
    check(
      x.shape.length === 3 && sameShape(mask.shape, x.shape.slice(1)),
      () => `softmax: x ${describe(x)} and mask ${describe(mask)}: expected [H, T, S] and [T, S]`,
    );
    return softMax(this.#recorder, this.#constants, input, added, scale);
  }

  scatterRows(target: Tensor, rows: Tensor, indices: Tensor): void {
    const at = (): string => `scatterRows of ${describe(rows)} to ${describe(target)} at ${describe(indices)}`;
    const recorder = this.#recorder;
    const into = recorder.own(target);
    const from = this.#rows('scatterRows: rows', rows);
    const index = recorder.packed(recorder.own(indices));
    check(
      into.origin.kind === 'allocated' && target.shape.length === 2,
      () => `${at()}: target must be allocated and 2-D`,
    );
    check(
      target.type === 'f32' || target.type === 'f16' || target.type === 'q8_0',
      () => `${at()}: target must be f32, f16 or q8_0`,
    );
    check(index.type === 'i32' && indices.shape.length === 1, () => `${at()}: indices must be i32 [tokens]`);
    check(sameShape(rows.shape, [indices.shape[0]!, target.shape[1]!]), () => `${at()}: sizes do not fit`);
    if (elements(rows.shape) === 0) return;
    this.#reciprocals.clear();
    recorder.appendNode(
      recorder.functions.setRows(recorder.context(), into.pointer, from.pointer, index.pointer),
      into,
    );
  }

  gatherRows(table: Tensor, indices: Tensor): Tensor {
    const at = (): string => `gatherRows of ${describe(table)} at ${describe(indices)}`;
    const source = this.#recorder.own(table);
    const index = this.#recorder.packed(this.#recorder.own(indices));
    check(
      table.shape.length === 2 && table.type !== 'i32' && hasContiguousRows(source),
      () => `${at()}: expected a matrix of weights`,
    );
    check(indices.type === 'i32' && indices.shape.length === 1, () => `${at()}: indices must be i32 [tokens]`);
    return this.#recorder.emit('f32', [indices.shape[0]!, table.shape[1]!], (c, f) =>
      f.getRows(c, source.pointer, index.pointer),
    );
  }

  copyTo(target: Tensor, x: Tensor): void {
    const at = (): string => `copyTo of ${describe(x)} into ${describe(target)}`;
    const recorder = this.#recorder;
    const into = recorder.own(target);
    const from = recorder.own(x);
    check(into.root.origin.kind === 'allocated', () => `${at()}: target must be allocated memory`);
    check(sameShape(target.shape, x.shape), () => `${at()}: shapes differ`);
    check(
      STORAGE[target.type].block === 1 || isContiguous(into),
      () => `${at()}: a ${target.type} target must be contiguous`,
    );
    if (elements(x.shape) === 0) return;
    this.#reciprocals.clear();
    recorder.appendNode(recorder.functions.cpy(recorder.context(), from.pointer, into.pointer), into);
  }

  reshape(x: Tensor, shape: readonly number[]): Tensor {
    const source = this.#recorder.own(x);
    const at = (): string => `reshape of ${describe(x)} to [${shape.join(', ')}]`;
    checkShape(x.type, shape);
    check(isContiguous(source), () => `${at()}: x must be contiguous`);
    check(elements(shape) === elements(x.shape), () => `${at()}: numbers of elements differ`);
    return this.#recorder.reshape(source, [...shape]);
  }

  slice(x: Tensor, axis: number, start: number, length: number): Tensor {
    const source = this.#recorder.own(x);
    const size = x.shape[axis];
    const at = (): string => `slice ${start} .. ${start + length} of axis ${axis} of ${describe(x)}`;
    check(size !== undefined, () => `${at()}: no such axis`);
    check(start >= 0 && length >= 0 && start + length <= size, () => `${at()}: outside of it`);
    const block = axis === x.shape.length - 1 ? STORAGE[x.type].block : 1;
    check(
      start % block === 0 && length % block === 0,
      () => `${at()}: bounds must be multiples of the block, ${block}`,
    );
    return this.#recorder.slice(source, axis, start, length);
  }

  permute(x: Tensor, order: readonly number[]): Tensor {
    const axes = x.shape.map((_, axis) => axis);
    const at = (): string => `permute of ${describe(x)} by [${order.join(', ')}]`;
    check(
      sameShape(
        order.toSorted((a, b) => a - b),
        axes,
      ),
      () => `${at()}: expected each of [${axes.join(', ')}] once`,
    );
    check(
      STORAGE[x.type].block === 1 || order.at(-1) === axes.at(-1),
      () => `${at()}: blocks of ${x.type} lie along the last axis`,
    );
    return this.#recorder.permute(this.#recorder.own(x), [...order]);
  }

  contiguous(x: Tensor): Tensor {
    return this.#recorder.contiguous(this.#recorder.own(x));
  }

  concat(parts: readonly Tensor[], axis: number): Tensor {
    const owned = parts.map((part) => this.#float('concat: part', part));
    const last = owned.at(-1);
    check(last !== undefined && axis in last.shape, () => `concat of ${parts.length} parts along axis ${axis}`);
    for (const part of owned) {
      const at = (): string => `concat of ${describe(part)} and ${describe(last)} along axis ${axis}`;
      check(
        sameShape(part.shape.toSpliced(axis, 1), last.shape.toSpliced(axis, 1)),
        () => `${at()}: other axes differ`,
      );
    }
    return concat(this.#recorder, owned, last, axis);
  }

  /** 1 / frequencies, once until something is written. Frequency 0 gives infinity, and ggml's position / infinity is angle 0 again. */
  #reciprocal(frequencies: Tensor): GgmlTensor {
    const source = this.#packed('rope: frequencies', frequencies);
    const known = this.#reciprocals.get(source);
    if (known !== undefined) return known;
    const result = reciprocal(this.#recorder, this.#constants, source);
    this.#reciprocals.set(source, result);
    return result;
  }

  #attention(q: Tensor, keys: Tensor, values: GgmlTensor, mask: Tensor, options: AttendOptions): Attention {
    const rows = this.#recorder.withContiguousRows(this.#recorder.own(keys));
    return { ...this.#mixture(values, mask, options), q: this.#packed('attend: q', q), keys: rows };
  }

  #mixture(values: GgmlTensor, mask: Tensor, options: AttendOptions): Omit<Attention, 'q' | 'keys'> {
    return {
      values,
      mask: this.#packed('attend: mask', mask),
      options,
      constants: this.#constants,
    };
  }

  #broadcast(name: string, a: Tensor, b: Tensor): [GgmlTensor, GgmlTensor] {
    const trailing = a.shape.slice(Math.max(0, a.shape.length - b.shape.length));
    check(
      b.shape.length <= MAX_AXES && sameShape(trailing, b.shape),
      () => `${name}: b ${describe(b)} is neither of the shape of a ${describe(a)} nor its trailing axes`,
    );
    return [this.#rows(`${name}: a`, a), this.#rows(`${name}: b`, b)];
  }

  #float(what: string, tensor: Tensor): GgmlTensor {
    check(tensor.type === 'f32', () => `${what} is ${describe(tensor)}, expected f32`);
    return this.#recorder.own(tensor);
  }

  #rows(what: string, tensor: Tensor): GgmlTensor {
    return this.#recorder.withContiguousRows(this.#float(what, tensor));
  }

  #packed(what: string, tensor: Tensor): GgmlTensor {
    return this.#recorder.packed(this.#float(what, tensor));
  }
}

function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}
