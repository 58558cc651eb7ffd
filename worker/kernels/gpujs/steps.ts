/**
 * How each operation becomes gpu.js kernels. A step prepares its inputs once and then only runs: arrays are handed over
 * as they lie where the layout permits; small views are packed first. Results go to the program's scratch memory.
 * Moving numbers (gather, scatter, copies) is left to the plain loops of reference/ops.ts. Next: recorder.ts, sources.ts.
 */
import type { AttendOptions, RopeOptions } from '../kernels.ts';
import { copyStep } from '../reference/ops.ts';
import { elementCount, permuteView, threeAxes, withAxes } from '../reference/strided-tensor.ts';
import type { StridedTensor } from '../reference/strided-tensor.ts';
import type { KernelSpec } from './kernel-cache.ts';
import { compact, floats, lazyInput, packed, runKernel, stackOf } from './recorder.ts';
import type { Dims, Recorder } from './recorder.ts';
import * as sources from './sources.ts';

export function matmul(recorder: Recorder, weight: StridedTensor, x: StridedTensor, out: StridedTensor): void {
  const { cache, written } = recorder;
  const copiesArguments = cache.mode !== 'cpu';
  if (copiesArguments && weight.storage.allocated && !written.has(weight.storage)) {
    residentMatmul(recorder, withAxes(weight, 3), withAxes(x, 3), withAxes(out, 3));
  } else argumentMatmul(recorder, withAxes(weight, 3), withAxes(x, 3), withAxes(out, 3));
}

/** The weight is an argument: free in mode cpu, copied at each call elsewhere. */
function argumentMatmul(recorder: Recorder, weight: StridedTensor, x: StridedTensor, out: StridedTensor): void {
  const [batches, tokens, rows] = threeAxes(out);
  const columns = x.shape[2]!;
  if (isTrivial(recorder, out, columns)) return;
  const stack = stackOf(recorder, weight);
  const groups = { groups: weight.shape[0]!, batches };
  const source = sources.matmulSource(stack.layout, groups, { tokens, rows, columns }, 'w');
  const spec: KernelSpec = { source, output: [cells(rows), tokens, batches], lanes: 4, width: rows, constants: {} };
  runKernel(recorder, spec, [stack.input, packed(recorder, x, [columns, batches * tokens])], out);
}

/**
 * The weight is part of the kernel. One token per call, because a kernel for another number of tokens would hold a
 * second copy of the weight; all programs share this one.
 */
function residentMatmul(recorder: Recorder, weight: StridedTensor, x: StridedTensor, out: StridedTensor): void {
  const [batches, tokens, rows] = threeAxes(out);
  const columns = x.shape[2]!;
  if (isTrivial(recorder, out, columns)) return;
  const stack = stackOf(recorder, weight);
  const groups = { groups: weight.shape[0]!, batches };
  const source = sources.matmulSource(stack.layout, groups, { tokens: 1, rows, columns }, 'this.constants.w');
  const spec: KernelSpec = { source, output: [cells(rows), 1, batches], lanes: 4, width: rows, constants: {} };
  const byToken = compact(recorder, permuteView(x, [1, 0, 2])); // [tokens, batches, columns]
  const inOrder = batches === 1 || tokens === 1;
  const result = inOrder ? out : recorder.result([tokens, batches, rows]);
  const inputs = Array.from({ length: tokens }, (_, t) =>
    lazyInput(byToken.storage, byToken.offset + t * batches * columns, [columns, batches]),
  );
  const { storage } = stack;
  recorder.push(() => {
    const resident = { storage, input: stack.input() };
    inputs.forEach((input, t) => {
      const start = result.offset + t * batches * rows;
      recorder.cache.run(spec, [input()], resident, floats(result.storage).subarray(start, start + batches * rows));
    });
  });
  if (!inOrder) recorder.push(copyStep(permuteView(result, [1, 0, 2]), out));
}

export function attend(
  recorder: Recorder,
  q: StridedTensor, // [heads, tokens, keyDim]
  keys: StridedTensor, // [groups, length, keyDim]
  values: StridedTensor, // [groups, length, valueDim]
  mask: StridedTensor, // [tokens, length] or [groups, tokens, length]
  options: AttendOptions,
  out: StridedTensor, // [heads, tokens, valueDim]
  logSumExp?: StridedTensor, // [heads, tokens]
): void {
  const [heads, tokens] = threeAxes(out);
  const length = keys.shape[1]!;
  if (isTrivial(recorder, out, length)) return;
  const scores = recorder.result([heads, tokens, length]);
  argumentMatmul(recorder, keys, q, scores);
  attendScores(recorder, scores, values, mask, options, out, logSumExp);
}

export function attendScores(
  recorder: Recorder,
  scores: StridedTensor, // [heads, tokens, length]
  values: StridedTensor, // [groups, length, valueDim]
  mask: StridedTensor, // [tokens, length] or [groups, tokens, length]
  options: AttendOptions,
  out: StridedTensor, // [heads, tokens, valueDim]
  logSumExp?: StridedTensor, // [heads, tokens]
): void {
  const [heads, tokens, valueDim] = threeAxes(out);
  const [groups, length] = threeAxes(values);
  if (isTrivial(recorder, out, length)) return;
  const weights = recorder.result([heads, tokens, length]);
  const stats = maskedSoftmax(recorder, scores, mask, options, weights);
  if (logSumExp !== undefined && stats !== undefined) recorder.push(() => logSumExpOf(stats, logSumExp));
  const stack = stackOf(recorder, values);
  const source = sources.mixSource(stack.layout, { groups, batches: heads }, { tokens, length, columns: valueDim });
  const output = [cells(valueDim), tokens, heads] as const;
  const inputs = [packed(recorder, weights, [length, heads * tokens]), stack.input];
  runKernel(recorder, { source, output, lanes: 4, width: valueDim, constants: {} }, inputs, out);
}

/** @returns [heads * tokens, 2]: of each row the maximum and the sum of exp(score - maximum) */
export function maskedSoftmax(
  recorder: Recorder,
  x: StridedTensor, // [heads, tokens, length]
  mask: StridedTensor, // [tokens, length] or [groups, tokens, length]
  options: AttendOptions,
  out: StridedTensor, // [heads, tokens, length]
): StridedTensor | undefined {
  const [heads, tokens, length] = threeAxes(x);
  if (isTrivial(recorder, out, length)) return undefined;
  const rows = heads * tokens;
  const masks = mask.shape.length === 3 ? mask.shape[0]! : 1;
  const scores = recorder.result(x.shape);
  const stats = recorder.result([rows, 2]);
  const constants = { ...sources.MASK_CONSTANTS, scale: options.scale, softcap: options.softcap };
  runKernel(
    recorder,
    {
      source: sources.maskedScoresSource(tokens, heads / masks, options.softcap !== 0),
      output: [length, tokens, heads],
      lanes: 1,
      width: length,
      constants,
    },
    [packed(recorder, x, [length, rows]), packed(recorder, mask, [length, masks * tokens])],
    scores,
  );
  runKernel(
    recorder,
    {
      source: sources.rowStatsSource(length),
      output: [rows, 1, 1],
      lanes: 2,
      width: rows * 2,
      constants: sources.MASK_CONSTANTS,
    },
    [packed(recorder, scores, [length, rows])],
    stats,
  );
  runKernel(
    recorder,
    {
      source: sources.softmaxWeightsSource(),
      output: [length, rows, 1],
      lanes: 1,
      width: length,
      constants: sources.MASK_CONSTANTS,
    },
    [packed(recorder, scores, [length, rows]), packed(recorder, stats, [2, rows])],
    out,
  );
  return stats;
}

/** maximum + log(sum); the maximum alone, far below every score, where all is masked. */
function logSumExpOf(stats: StridedTensor, out: StridedTensor): void {
  const from = floats(stats.storage).subarray(stats.offset);
  const to = floats(out.storage).subarray(out.offset);
  for (let row = 0; row < elementCount(out.shape); row++) {
    const sum = from[2 * row + 1]!;
    to[row] = sum > 0 ? from[2 * row]! + Math.log(sum) : from[2 * row]!;
  }
}

export function rmsNorm(recorder: Recorder, x: StridedTensor, eps: number, out: StridedTensor): void {
  const [columns, rows] = flatDims(x);
  if (isTrivial(recorder, out, columns)) return;
  const factors = recorder.result([rows]);
  const input = packed(recorder, x, [columns, rows]);
  const source = sources.rmsSource(columns);
  runKernel(recorder, { source, output: [rows, 1, 1], lanes: 1, width: rows, constants: { eps } }, [input], factors);
  const scaling = cellwise(sources.scaleRowsSource(), [columns, rows], {});
  runKernel(recorder, scaling, [input, packed(recorder, factors, [rows, 1])], out);
}

export function rope(
  recorder: Recorder,
  x: StridedTensor, // [tokens, heads, dim]
  positions: StridedTensor, // [tokens]
  frequencies: StridedTensor, // [dim / 2]
  options: RopeOptions,
  out: StridedTensor, // [tokens, heads, dim]
): void {
  const [tokens, heads, dim] = threeAxes(x);
  if (isTrivial(recorder, out, dim)) return;
  const cos = recorder.result([tokens, dim]);
  const sin = recorder.result([tokens, dim]);
  recorder.push(() => writeAngles(positions, frequencies, options, cos, sin));
  const source = sources.ropeSource(heads, dim, options.interleaved);
  const inputs = [
    packed(recorder, x, [dim, tokens * heads]),
    packed(recorder, cos, [dim, tokens]),
    packed(recorder, sin, [dim, tokens]),
  ];
  runKernel(recorder, { source, output: [dim, heads, tokens], lanes: 1, width: dim, constants: {} }, inputs, out);
}

/**
 * Cosines and sines per token and column, from angles in float64: at position 8192 a float32 angle is off by 5e-4 rad,
 * and shaders reduce large angles worse. dim / 2 pairs per token are too few to be worth a kernel.
 */
function writeAngles(
  positions: StridedTensor, // [tokens]
  frequencies: StridedTensor, // [dim / 2]
  { interleaved, attentionFactor }: RopeOptions,
  cos: StridedTensor, // [tokens, dim]
  sin: StridedTensor, // [tokens, dim]   negative for the first of a pair
): void {
  const [tokens, dim] = [cos.shape[0]!, cos.shape[1]!];
  const half = dim / 2;
  for (let t = 0; t < tokens; t++) {
    const position = positions.storage.data[positions.offset + t * positions.strides[0]!]!;
    for (let i = 0; i < half; i++) {
      const angle = position * frequencies.storage.data[frequencies.offset + i * frequencies.strides[0]!]!;
      const first = t * dim + (interleaved ? 2 * i : i);
      const second = interleaved ? first + 1 : first + half;
      const [cosine, sine] = [Math.cos(angle) * attentionFactor, Math.sin(angle) * attentionFactor];
      cos.storage.data[cos.offset + first] = cosine;
      cos.storage.data[cos.offset + second] = cosine;
      sin.storage.data[sin.offset + first] = -sine;
      sin.storage.data[sin.offset + second] = sine;
    }
  }
}

/** A kernel whose cell (x, y) depends on the cells (x, y) of inputs of one shape. */
export function elementwise(
  recorder: Recorder,
  source: string,
  inputs: readonly StridedTensor[],
  constants: Readonly<Record<string, number>>,
  out: StridedTensor,
): void {
  const dims = flatDims(out);
  if (isTrivial(recorder, out, 1)) return;
  const packedInputs = inputs.map((input) => packed(recorder, input, dims));
  runKernel(recorder, cellwise(source, dims, constants), packedInputs, out);
}

/** a and b element by element; b may lack leading axes of a. */
export function binary(
  recorder: Recorder,
  operator: '+' | '*',
  a: StridedTensor,
  b: StridedTensor,
  out: StridedTensor,
): void {
  if (a.shape.length === b.shape.length) {
    elementwise(recorder, sources.binarySource(operator, false), [a, b], {}, out);
    return;
  }
  if (isTrivial(recorder, out, 1)) return;
  const width = elementCount(b.shape);
  const dims: Dims = [width, elementCount(a.shape) / width];
  const inputs = [packed(recorder, a, dims), packed(recorder, b, [width, 1])];
  runKernel(recorder, cellwise(sources.binarySource(operator, true), dims, {}), inputs, out);
}

function cellwise(source: string, [columns, rows]: Dims, constants: Readonly<Record<string, number>>): KernelSpec {
  return { source, output: [columns, rows, 1], lanes: 1, width: columns, constants };
}

/** Nothing to compute: no element, or sums over nothing, which are zero. */
function isTrivial(recorder: Recorder, out: StridedTensor, terms: number): boolean {
  if (elementCount(out.shape) > 0 && terms > 0) return false;
  recorder.push(() => out.storage.data.fill(0, out.offset, out.offset + elementCount(out.shape)));
  return true;
}

function flatDims(x: StridedTensor): Dims {
  const columns = x.shape.at(-1)!;
  return [columns, columns === 0 ? 0 : elementCount(x.shape) / columns];
}

function cells(rows: number): number {
  return Math.ceil(rows / sources.LANES);
}
