/**
 * The definition of each operation as plain loops with float64 sums and float32 results. A function here returns a step:
 * it looks up the numbers when it runs, because programs of a set share memory that is bound after recording.
 * Shapes were checked by shapes.ts. No cleverness: other backends are compared with this file.
 */
import { invariant } from '../../../config/errors.ts';
import type { AttendOptions, RopeOptions } from '../kernels.ts';
import { roundToHalf } from './half.ts';
import { broadcastView, withAxes } from './strided-tensor.ts';
import type { StridedTensor } from './strided-tensor.ts';

export type Step = () => void;

export function matmulStep(weight: StridedTensor, x: StridedTensor, out: StridedTensor): Step {
  const w = withAxes(weight, 3); // [bw, m, k]
  const a = withAxes(x, 3); // [bx, t, k]
  const y = withAxes(out, 3); // [bx, t, m]
  const [batches = 0, tokens = 0, rows = 0] = y.shape;
  const columns = a.shape[2]!;
  return () => {
    for (let b = 0; b < batches; b++) {
      const group = Math.floor((b * w.shape[0]!) / batches);
      for (let t = 0; t < tokens; t++) {
        for (let m = 0; m < rows; m++) {
          const sum = dot(w, rowOffset(w, group, m), a, rowOffset(a, b, t), columns);
          y.storage.data[rowOffset(y, b, t) + m * y.strides[2]!] = sum;
        }
      }
    }
  };
}

/** out = compute(a, b) element by element; b may have fewer leading axes. */
export function elementwiseStep(
  a: StridedTensor,
  b: StridedTensor,
  out: StridedTensor,
  compute: (a: number, b: number) => number,
): Step {
  const left = withAxes(a, 4);
  const right = withAxes(broadcastView(b, a.shape), 4);
  const y = withAxes(out, 4);
  const [n0 = 0, n1 = 0, n2 = 0, n3 = 0] = y.shape;
  const at = (x: StridedTensor, i: number, j: number, k: number, l: number) =>
    x.offset + i * x.strides[0]! + j * x.strides[1]! + k * x.strides[2]! + l * x.strides[3]!;
  return () => {
    for (let i = 0; i < n0; i++)
      for (let j = 0; j < n1; j++)
        for (let k = 0; k < n2; k++)
          for (let l = 0; l < n3; l++) {
            const value = compute(left.storage.data[at(left, i, j, k, l)]!, right.storage.data[at(right, i, j, k, l)]!);
            y.storage.data[at(y, i, j, k, l)] = value;
          }
  };
}

/** Copies x, rounded to what the target's type can hold. */
export function copyStep(x: StridedTensor, target: StridedTensor): Step {
  return elementwiseStep(x, x, target, target.type === 'f16' ? roundToHalf : (value) => value);
}

export function rmsNormStep(x: StridedTensor, eps: number, out: StridedTensor): Step {
  const columns = x.shape.at(-1)!;
  return forEachRow([x, out], (offsets) => {
    const from = offsets[0]!;
    const to = offsets[1]!;
    const meanSquare = dot(x, from, x, from, columns) / columns;
    const factor = 1 / Math.sqrt(meanSquare + eps);
    for (let i = 0; i < columns; i++) {
      out.storage.data[to + i * lastStride(out)] = x.storage.data[from + i * lastStride(x)]! * factor;
    }
  });
}

export function ropeStep(
  x: StridedTensor, // [tokens, heads, dim]
  positions: StridedTensor, // [tokens]
  frequencies: StridedTensor, // [dim / 2]
  options: RopeOptions,
  out: StridedTensor, // [tokens, heads, dim]
): Step {
  const [tokens = 0, heads = 0, dim = 0] = x.shape;
  const half = dim / 2;
  return () => {
    const input = x.storage.data;
    const output = out.storage.data;
    for (let t = 0; t < tokens; t++) {
      const position = positions.storage.data[positions.offset + t * lastStride(positions)]!;
      for (let i = 0; i < half; i++) {
        const angle = position * frequencies.storage.data[frequencies.offset + i * lastStride(frequencies)]!;
        const cos = Math.cos(angle) * options.attentionFactor;
        const sin = Math.sin(angle) * options.attentionFactor;
        const first = options.interleaved ? 2 * i : i;
        const second = options.interleaved ? 2 * i + 1 : i + half;
        for (let h = 0; h < heads; h++) {
          const from = rowOffset(x, t, h);
          const to = rowOffset(out, t, h);
          const a = input[from + first * lastStride(x)]!;
          const b = input[from + second * lastStride(x)]!;
          output[to + first * lastStride(out)] = a * cos - b * sin;
          output[to + second * lastStride(out)] = a * sin + b * cos;
        }
      }
    }
  };
}

/** @param logSumExp [heads, tokens]; undefined: not asked for */
export function attendStep(
  q: StridedTensor, // [heads, tokens, keyDim]
  keys: StridedTensor, // [groups, length, keyDim]
  values: StridedTensor, // [groups, length, valueDim]
  mask: StridedTensor, // [tokens, length] or [groups, tokens, length]
  options: AttendOptions,
  out: StridedTensor, // [heads, tokens, valueDim]
  logSumExp?: StridedTensor,
): Step {
  const [groups = 0, , keyDim = 0] = keys.shape;
  const heads = out.shape[0]!;
  const score = (h: number, t: number, s: number): number =>
    dot(q, rowOffset(q, h, t), keys, rowOffset(keys, Math.floor((h * groups) / heads), s), keyDim);
  return mixStep(score, values, mask, options, out, logSumExp);
}

export function attendScoresStep(
  scores: StridedTensor, // [heads, tokens, length]
  values: StridedTensor, // [groups, length, valueDim]
  mask: StridedTensor, // [tokens, length]
  options: AttendOptions,
  out: StridedTensor, // [heads, tokens, valueDim]
): Step {
  const score = (h: number, t: number, s: number): number =>
    scores.storage.data[rowOffset(scores, h, t) + s * lastStride(scores)]!;
  return mixStep(score, values, mask, options, out, undefined);
}

/** out = softmax(cap(scale * score) + mask) values */
function mixStep(
  score: (h: number, t: number, s: number) => number,
  values: StridedTensor, // [groups, length, valueDim]
  mask: StridedTensor, // [tokens, length] or [groups, tokens, length]
  options: AttendOptions,
  out: StridedTensor, // [heads, tokens, valueDim]
  logSumExp: StridedTensor | undefined, // [heads, tokens]
): Step {
  const [heads = 0, tokens = 0, valueDim = 0] = out.shape;
  const [groups = 0, length = 0] = values.shape;
  const weights = new Float64Array(length); // [length]
  return () => {
    for (let h = 0; h < heads; h++) {
      const group = Math.floor((h * groups) / heads);
      for (let t = 0; t < tokens; t++) {
        const row = mask.shape.length === 3 ? rowOffset(mask, group, t) : elementOffset(mask, t, 0);
        for (let s = 0; s < length; s++) {
          const bias = mask.storage.data[row + s * lastStride(mask)]!;
          weights[s] = capped(options.scale * score(h, t, s), options.softcap) + bias;
        }
        const total = normalise(weights);
        if (logSumExp !== undefined)
          logSumExp.storage.data[elementOffset(logSumExp, h, t)] = Math.max(total, NOTHING_VISIBLE);
        for (let d = 0; d < valueDim; d++) {
          let sum = 0;
          for (let s = 0; s < length; s++) {
            // A masked row may hold anything, also what 0 * x does not turn into 0.
            if (weights[s] === 0) continue;
            sum += weights[s]! * values.storage.data[rowOffset(values, group, s) + d * values.strides[2]!]!;
          }
          out.storage.data[rowOffset(out, h, t) + d * out.strides[2]!] = sum;
        }
      }
    }
  };
}

export function softmaxStep(x: StridedTensor, mask: StridedTensor, scale: number, out: StridedTensor): Step {
  const columns = x.shape[2]!;
  const weights = new Float64Array(columns);
  return forEachRow([x, broadcastView(mask, x.shape), out], (offsets) => {
    for (let i = 0; i < columns; i++) {
      const bias = mask.storage.data[offsets[1]! + i * lastStride(mask)]!;
      weights[i] = scale * x.storage.data[offsets[0]! + i * lastStride(x)]! + bias;
    }
    normalise(weights);
    for (let i = 0; i < columns; i++) out.storage.data[offsets[2]! + i * lastStride(out)] = weights[i]!;
  });
}

export function scatterRowsStep(target: StridedTensor, rows: StridedTensor, indices: StridedTensor): Step {
  const convert = target.type === 'f16' ? roundToHalf : (value: number) => value;
  const [tokens = 0, columns = 0] = rows.shape;
  return () => {
    for (let t = 0; t < tokens; t++) {
      const row = checkedIndex('scatterRows', indices, t, target.shape[0]!);
      for (let i = 0; i < columns; i++) {
        target.storage.data[elementOffset(target, row, i)] = convert(rows.storage.data[elementOffset(rows, t, i)]!);
      }
    }
    target.storage.version++;
  };
}

export function gatherRowsStep(table: StridedTensor, indices: StridedTensor, out: StridedTensor): Step {
  const [tokens = 0, columns = 0] = out.shape;
  return () => {
    for (let t = 0; t < tokens; t++) {
      const row = checkedIndex('gatherRows', indices, t, table.shape[0]!);
      for (let i = 0; i < columns; i++) {
        out.storage.data[elementOffset(out, t, i)] = table.storage.data[elementOffset(table, row, i)]!;
      }
    }
  };
}

/** softcap * tanh(score / softcap); 0: the score itself. */
export function capped(score: number, softcap: number): number {
  return softcap === 0 ? score : softcap * Math.tanh(score / softcap);
}

export function activate(kind: 'silu' | 'gelu-tanh', x: number): number {
  if (kind === 'silu') return x / (1 + Math.exp(-x));
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));
}

export function checkedIndex(name: string, indices: StridedTensor, t: number, limit: number): number {
  const index = indices.storage.data[indices.offset + t * lastStride(indices)]!;
  invariant(index >= 0 && index < limit, `${name}: index ${index} of token ${t} is outside 0 .. ${limit - 1}`);
  return index;
}

/** What stands for log(0): a number with which arithmetic gives no NaN. */
export const NOTHING_VISIBLE = -1e30;

/**
 * Softmax in place. A row that is masked throughout gives zeros, not NaN.
 * @returns log of the sum of exp(weight)
 */
function normalise(weights: Float64Array): number {
  let max = -Infinity;
  for (const weight of weights) if (weight > max) max = weight;
  if (max === -Infinity) {
    weights.fill(0);
    return -Infinity;
  }
  let sum = 0;
  for (let i = 0; i < weights.length; i++) sum += weights[i] = Math.exp(weights[i]! - max);
  for (let i = 0; i < weights.length; i++) weights[i]! /= sum;
  return max + Math.log(sum);
}

function dot(a: StridedTensor, aOffset: number, b: StridedTensor, bOffset: number, length: number): number {
  const left = a.storage.data;
  const right = b.storage.data;
  const leftStride = lastStride(a);
  const rightStride = lastStride(b);
  let sum = 0;
  for (let i = 0; i < length; i++) sum += left[aOffset + i * leftStride]! * right[bOffset + i * rightStride]!;
  return sum;
}

/** Calls `visit` with the offset of each row (last axis) of tensors of one shape. */
function forEachRow(tensors: readonly StridedTensor[], visit: (offsets: readonly number[]) => void): Step {
  const views = tensors.map((tensor) => withAxes(tensor, 4));
  const [n0 = 0, n1 = 0, n2 = 0] = views[0]!.shape;
  return () => {
    for (let i = 0; i < n0; i++)
      for (let j = 0; j < n1; j++)
        for (let k = 0; k < n2; k++) visit(views.map((view) => rowOffset(view, j, k) + i * view.strides[0]!));
  };
}

/** Where row (i, j) begins; i and j are the two axes before the last. */
function rowOffset(x: StridedTensor, i: number, j: number): number {
  const axes = x.strides.length;
  return x.offset + i * x.strides[axes - 3]! + j * x.strides[axes - 2]!;
}

function elementOffset(x: StridedTensor, i: number, j: number): number {
  return x.offset + i * x.strides[0]! + j * x.strides[1]!;
}

function lastStride(x: StridedTensor): number {
  return x.strides[x.strides.length - 1]!;
}
