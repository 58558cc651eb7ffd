/**
 * The operations of kernels.ts as ggml nodes. Checks what ggml would end the process for, then names the node. Where
 * ggml has no exact counterpart (gelu by table, rotation by frequency) the operation is put together from several nodes.
 * Next: graph.ts (recording), attend.ts.
 */
import { attend } from './attend.ts';
import {
  MAX_AXES,
  STORAGE,
  check,
  checkShape,
  describe,
  elements,
  hasContiguousRows,
  isContiguous,
  type GgmlTensor,
} from './tensor.ts';
import type { AttendOptions, Ops, RopeOptions, Tensor, TensorType } from '../kernels.ts';
import type { GraphRecorder } from './graph.ts';

/** Longest table of frequencies: half the largest head that any model rotates, with room. */
export const MAX_FREQUENCIES = 4096;

const ROPE_INTERLEAVED = 0;
const ROPE_HALVES = 2;

export class GgmlOps implements Ops {
  readonly #recorder: GraphRecorder;
  readonly #ones: GgmlTensor;
  readonly #reciprocals = new Map<GgmlTensor, GgmlTensor>();

  /** @param ones [MAX_FREQUENCIES] f32, allocated, all 1 */
  constructor(recorder: GraphRecorder, ones: GgmlTensor) {
    this.#recorder = recorder;
    this.#ones = ones;
  }

  matmul(weight: Tensor, x: Tensor): Tensor {
    const w = this.#recorder.own(weight);
    const input = this.#rows('matmul: x', x);
    const at = `matmul of weight ${describe(w)} and x ${describe(x)}`;
    const axes = w.shape.length;
    check((axes === 2 || axes === 3) && x.shape.length === axes, `${at}: expected two matrices or two batches of them`);
    check(w.shape.at(-1) === x.shape.at(-1), `${at}: inner sizes differ`);
    check(w.type !== 'i32' && hasContiguousRows(w), `${at}: rows of weight must be contiguous numbers`);
    check(axes === 2 || x.shape[0]! % w.shape[0]! === 0, `${at}: batches of x are no multiple of those of weight`);
    const shape = [...x.shape.slice(0, -1), w.shape.at(-2)!];
    return this.#emit(shape, (c, f) => f.mulMat(c, w.pointer, input.pointer));
  }

  add(a: Tensor, b: Tensor): Tensor {
    const [left, right] = this.#broadcast('add', a, b);
    return this.#emit(a.shape, (c, f) => f.add(c, left.pointer, right.pointer));
  }

  multiply(a: Tensor, b: Tensor): Tensor {
    const [left, right] = this.#broadcast('multiply', a, b);
    return this.#emit(a.shape, (c, f) => f.mul(c, left.pointer, right.pointer));
  }

  scale(x: Tensor, factor: number): Tensor {
    const input = this.#packed('scale: x', x);
    return this.#emit(x.shape, (c, f) => f.scale(c, input.pointer, factor));
  }

  rmsNorm(x: Tensor, eps: number): Tensor {
    const input = this.#rows('rmsNorm: x', x);
    return this.#emit(x.shape, (c, f) => f.rmsNorm(c, input.pointer, eps));
  }

  rope(x: Tensor, positions: Tensor, frequencies: Tensor, options: RopeOptions): Tensor {
    const input = this.#rows('rope: x', x);
    const [tokens, , dim] = x.shape;
    const at = `rope of ${describe(x)} by ${describe(positions)} and ${describe(frequencies)}`;
    check(x.shape.length === 3 && dim! % 2 === 0, `${at}: expected [tokens, heads, even dim]`);
    check(
      positions.type === 'i32' && sameShape(positions.shape, [tokens!]),
      `${at}: expected positions i32 [${tokens}]`,
    );
    check(sameShape(frequencies.shape, [dim! / 2]), `${at}: expected frequencies f32 [${dim! / 2}]`);
    const reciprocals = this.#reciprocal(frequencies);
    const index = this.#recorder.packed(this.#recorder.own(positions));
    const mode = options.interleaved ? ROPE_INTERLEAVED : ROPE_HALVES;
    // Base 1 makes ggml's own angle the bare position, which it divides by the factors; no YaRN (extension 0).
    return this.#emit(x.shape, (c, f) =>
      f.rope(
        c,
        input.pointer,
        index.pointer,
        reciprocals.pointer,
        dim!,
        mode,
        0,
        1,
        1,
        0,
        options.attentionFactor,
        0,
        0,
      ),
    );
  }

  gated(gate: Tensor, up: Tensor, activation: 'silu' | 'gelu-tanh'): Tensor {
    const at = `gated: gate ${describe(gate)} and up ${describe(up)}`;
    check(sameShape(gate.shape, up.shape), `${at} differ in shape`);
    const [g, u] = [this.#packed('gated: gate', gate), this.#packed('gated: up', up)];
    if (activation === 'silu') return this.#emit(g.shape, (c, f) => f.swiglu(c, g.pointer, u.pointer));
    return this.multiply(this.#geluTanh(g), u);
  }

  softcap(x: Tensor, softcap: number): Tensor {
    const input = this.#packed('softcap: x', x);
    check(softcap > 0, `softcap ${softcap}: must be positive`);
    const narrowed = this.#emit(x.shape, (c, f) => f.scale(c, input.pointer, 1 / softcap));
    const bent = this.#emit(x.shape, (c, f) => f.tanh(c, narrowed.pointer));
    return this.#emit(x.shape, (c, f) => f.scale(c, bent.pointer, softcap));
  }

  attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, options: AttendOptions): Tensor {
    const at = `attend: q ${describe(q)}, keys ${describe(keys)}, values ${describe(values)}, mask ${describe(mask)}`;
    const [H, T, dk] = q.shape;
    const [G, S, dv] = values.shape;
    check(
      q.shape.length === 3 && values.shape.length === 3,
      `${at}: expected [H, T, dk], [G, S, dk], [G, S, dv], [T, S]`,
    );
    check(sameShape(keys.shape, [G!, S!, dk!]) && sameShape(mask.shape, [T!, S!]), `${at}: sizes do not fit`);
    check(H! % G! === 0 && dv! > 0, `${at}: ${H} query heads are no multiple of ${G} key heads`);
    for (const cached of [keys, values]) {
      check(cached.type === 'f32' || cached.type === 'f16', `${at}: keys and values must be f32 or f16`);
    }
    const recorder = this.#recorder;
    return attend(recorder, {
      q: this.#packed('attend: q', q),
      keys: recorder.withContiguousRows(recorder.own(keys)),
      values: recorder.withContiguousRows(recorder.own(values)),
      mask: this.#packed('attend: mask', mask),
      options,
    });
  }

  softmax(x: Tensor, mask: Tensor, scale: number): Tensor {
    const input = this.#packed('softmax: x', x);
    const added = this.#packed('softmax: mask', mask);
    check(
      x.shape.length === 3 && sameShape(mask.shape, x.shape.slice(1)),
      `softmax: x ${describe(x)} and mask ${describe(mask)}: expected [H, T, S] and [T, S]`,
    );
    return this.#emit(x.shape, (c, f) => f.softMax(c, input.pointer, added.pointer, scale, 0));
  }

  scatterRows(target: Tensor, rows: Tensor, indices: Tensor): void {
    const at = `scatterRows of ${describe(rows)} to ${describe(target)} at ${describe(indices)}`;
    const recorder = this.#recorder;
    const into = recorder.own(target);
    const from = this.#rows('scatterRows: rows', rows);
    const index = recorder.packed(recorder.own(indices));
    check(into.origin.kind === 'allocated' && target.shape.length === 2, `${at}: target must be allocated and 2-D`);
    check(
      target.type === 'f32' || target.type === 'f16' || target.type === 'q8_0',
      `${at}: target must be f32, f16 or q8_0`,
    );
    check(index.type === 'i32' && indices.shape.length === 1, `${at}: indices must be i32 [tokens]`);
    check(sameShape(rows.shape, [indices.shape[0]!, target.shape[1]!]), `${at}: sizes do not fit`);
    recorder.appendNode(
      recorder.functions.setRows(recorder.context(), into.pointer, from.pointer, index.pointer),
      into,
    );
  }

  gatherRows(table: Tensor, indices: Tensor): Tensor {
    const at = `gatherRows of ${describe(table)} at ${describe(indices)}`;
    const source = this.#recorder.own(table);
    const index = this.#recorder.packed(this.#recorder.own(indices));
    check(
      table.shape.length === 2 && table.type !== 'i32' && hasContiguousRows(source),
      `${at}: expected a matrix of weights`,
    );
    check(indices.type === 'i32' && indices.shape.length === 1, `${at}: indices must be i32 [tokens]`);
    return this.#emit([indices.shape[0]!, table.shape[1]!], (c, f) => f.getRows(c, source.pointer, index.pointer));
  }

  copyTo(target: Tensor, x: Tensor): void {
    const at = `copyTo of ${describe(x)} into ${describe(target)}`;
    const recorder = this.#recorder;
    const into = recorder.own(target);
    const from = recorder.own(x);
    check(into.root.origin.kind === 'allocated', `${at}: target must be allocated memory`);
    check(sameShape(target.shape, x.shape), `${at}: shapes differ`);
    check(STORAGE[target.type].block === 1 || isContiguous(into), `${at}: a ${target.type} target must be contiguous`);
    recorder.appendNode(recorder.functions.cpy(recorder.context(), from.pointer, into.pointer), into);
  }

  reshape(x: Tensor, shape: readonly number[]): Tensor {
    const source = this.#recorder.own(x);
    const at = `reshape of ${describe(x)} to [${shape.join(', ')}]`;
    checkShape(x.type, shape);
    check(isContiguous(source), `${at}: x must be contiguous`);
    check(elements(shape) === elements(x.shape), `${at}: numbers of elements differ`);
    return this.#recorder.reshape(source, [...shape]);
  }

  slice(x: Tensor, axis: number, start: number, length: number): Tensor {
    const source = this.#recorder.own(x);
    const size = x.shape[axis];
    const at = `slice ${start} .. ${start + length} of axis ${axis} of ${describe(x)}`;
    check(size !== undefined, `${at}: no such axis`);
    check(start >= 0 && length > 0 && start + length <= size, `${at}: outside of it`);
    const block = axis === x.shape.length - 1 ? STORAGE[x.type].block : 1;
    check(start % block === 0 && length % block === 0, `${at}: bounds must be multiples of the block, ${block}`);
    return this.#recorder.slice(source, axis, start, length);
  }

  permute(x: Tensor, order: readonly number[]): Tensor {
    const axes = x.shape.map((_, axis) => axis);
    const at = `permute of ${describe(x)} by [${order.join(', ')}]`;
    check(
      sameShape(
        order.toSorted((a, b) => a - b),
        axes,
      ),
      `${at}: expected each of [${axes.join(', ')}] once`,
    );
    check(
      STORAGE[x.type].block === 1 || order.at(-1) === axes.at(-1),
      `${at}: blocks of ${x.type} lie along the last axis`,
    );
    return this.#recorder.permute(this.#recorder.own(x), [...order]);
  }

  contiguous(x: Tensor): Tensor {
    return this.#recorder.contiguous(this.#recorder.own(x));
  }

  concat(parts: readonly Tensor[], axis: number): Tensor {
    const [first, ...rest] = parts.map((part) => this.#float('concat: part', part));
    check(
      first !== undefined && axis >= 0 && axis < first.shape.length,
      `concat of ${parts.length} parts along axis ${axis}`,
    );
    return rest.reduce((joined, part) => {
      const at = `concat of ${describe(joined)} and ${describe(part)} along axis ${axis}`;
      check(sameShape(joined.shape.toSpliced(axis, 1), part.shape.toSpliced(axis, 1)), `${at}: other axes differ`);
      const shape = joined.shape.with(axis, joined.shape[axis]! + part.shape[axis]!);
      return this.#emit(shape, (c, f) => f.concat(c, joined.pointer, part.pointer, shape.length - 1 - axis));
    }, first);
  }

  /** 0.5 x (1 + tanh(z)) = x sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3). ggml's own gelu reads an f16 table. */
  #geluTanh(x: GgmlTensor): GgmlTensor {
    const twice = 2 * Math.sqrt(2 / Math.PI);
    const square = this.#emit(x.shape, (c, f) => f.sqr(c, x.pointer));
    const slope = this.#emit(x.shape, (c, f) => f.scaleBias(c, square.pointer, twice * 0.044715, twice));
    const argument = this.#emit(x.shape, (c, f) => f.mul(c, slope.pointer, x.pointer));
    const gate = this.#emit(x.shape, (c, f) => f.sigmoid(c, argument.pointer));
    return this.#emit(x.shape, (c, f) => f.mul(c, gate.pointer, x.pointer));
  }

  /** 1 / frequencies, once per program. Frequency 0 gives infinity, and ggml's position / infinity is angle 0 again. */
  #reciprocal(frequencies: Tensor): GgmlTensor {
    const source = this.#packed('rope: frequencies', frequencies);
    const known = this.#reciprocals.get(source);
    if (known !== undefined) return known;
    const size = frequencies.shape[0]!;
    check(size <= MAX_FREQUENCIES, `rope: ${size} frequencies, at most ${MAX_FREQUENCIES}`);
    const ones = this.#recorder.slice(this.#recorder.own(this.#ones), 0, 0, size);
    const result = this.#emit([size], (c, f) => f.div(c, ones.pointer, source.pointer));
    this.#reciprocals.set(source, result);
    return result;
  }

  #emit(
    shape: readonly number[],
    create: (context: bigint, functions: GraphRecorder['functions']) => bigint,
    type: TensorType = 'f32',
  ): GgmlTensor {
    return this.#recorder.emit(type, shape, (context) => create(context, this.#recorder.functions));
  }

  #broadcast(name: string, a: Tensor, b: Tensor): [GgmlTensor, GgmlTensor] {
    const trailing = a.shape.slice(Math.max(0, a.shape.length - b.shape.length));
    check(
      b.shape.length <= MAX_AXES && sameShape(trailing, b.shape),
      `${name}: b ${describe(b)} is neither of the shape of a ${describe(a)} nor its trailing axes`,
    );
    return [this.#rows(`${name}: a`, a), this.#rows(`${name}: b`, b)];
  }

  #float(what: string, tensor: Tensor): GgmlTensor {
    check(tensor.type === 'f32', `${what} is ${describe(tensor)}, expected f32`);
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
