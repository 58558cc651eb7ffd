/**
 * The two operations of routed experts as gpu.js kernels. Weights are arguments in mode cpu; elsewhere they are part of
 * the kernel, which then computes one token per call, as in steps.ts.
 */
import { copyStep } from '../reference/ops.ts';
import { elementCount, threeAxes } from '../reference/strided-tensor.ts';
import type { StridedTensor } from '../reference/strided-tensor.ts';
import type { KernelSpec } from './kernel-cache.ts';
import { compact, floats, lazyInput, packed, runKernel, stackOf } from './recorder.ts';
import type { Recorder } from './recorder.ts';
import { LANES } from './sources.ts';
import type { StackLayout } from './sources.ts';

export function expertMatmul(
  recorder: Recorder,
  weights: StridedTensor, // [experts, rows, columns]
  x: StridedTensor, // [tokens, slots or 1, columns]
  ids: StridedTensor, // [tokens, slots] i32
  out: StridedTensor, // [tokens, slots, rows]
): void {
  const [tokens, slots, rows] = threeAxes(out);
  const columns = x.shape[2]!;
  if (elementCount(out.shape) === 0 || columns === 0) {
    recorder.push(() => out.storage.data.fill(0, out.offset, out.offset + elementCount(out.shape)));
    return;
  }
  const xRows = x.shape[1]!;
  const stack = stackOf(recorder, weights);
  const indices = recorder.result(ids.shape); // kernels read floats
  recorder.push(copyStep(ids, indices));
  const sizes = { slots: xRows === 1 ? 1 : slots, rows, columns };
  const cells = Math.ceil(rows / LANES);
  const { cache, written } = recorder;
  if (cache.mode === 'cpu' || !weights.storage.allocated || written.has(weights.storage)) {
    const source = expertMatmulSource(stack.layout, sizes, 'w');
    const spec: KernelSpec = { source, output: [cells, slots, tokens], lanes: 4, width: rows, constants: {} };
    const inputs = [
      stack.input,
      packed(recorder, x, [columns, tokens * xRows]),
      packed(recorder, indices, [slots, tokens]),
    ];
    runKernel(recorder, spec, inputs, out);
    return;
  }
  const source = expertMatmulSource(stack.layout, sizes, 'this.constants.w');
  const spec: KernelSpec = { source, output: [cells, slots, 1], lanes: 4, width: rows, constants: {} };
  const input = compact(recorder, x);
  const perToken = Array.from({ length: tokens }, (_, t) => [
    lazyInput(input.storage, input.offset + t * xRows * columns, [columns, xRows]),
    lazyInput(indices.storage, indices.offset + t * slots, [slots, 1]),
  ]);
  recorder.push(() => {
    const resident = { storage: stack.storage, input: stack.input() };
    perToken.forEach((inputs, t) => {
      const start = out.offset + t * slots * rows;
      const target = floats(out.storage).subarray(start, start + slots * rows);
      recorder.cache.run(
        spec,
        inputs.map((lazy) => lazy()),
        resident,
        target,
      );
    });
  });
}

export function weightedSum(
  recorder: Recorder,
  x: StridedTensor, // [tokens, slots, columns]
  shares: StridedTensor, // [tokens, slots]
  out: StridedTensor, // [tokens, columns]
): void {
  const [tokens, slots, columns] = threeAxes(x);
  if (elementCount(x.shape) === 0) {
    recorder.push(() => out.storage.data.fill(0, out.offset, out.offset + elementCount(out.shape)));
    return;
  }
  const spec: KernelSpec = {
    source: weightedSumSource(slots),
    output: [columns, tokens, 1],
    lanes: 1,
    width: columns,
    constants: {},
  };
  runKernel(
    recorder,
    spec,
    [packed(recorder, x, [columns, tokens * slots]), packed(recorder, shares, [slots, tokens])],
    out,
  );
}

/** out[t][j][m] = sum_k weight[ids[t][j]][m][k] x[t][j or 0][k], four m to a cell. @param slots rows of x per token */
function expertMatmulSource(
  layout: StackLayout,
  { slots, rows, columns }: { readonly slots: number; readonly rows: number; readonly columns: number },
  weight: 'w' | 'this.constants.w',
): string {
  const row = (lane: number) => `b * ${layout.rowStep} + Math.min(this.thread.x * 4 + ${lane}, ${rows - 1})`;
  return `function (${weight === 'w' ? 'w, x, ids' : 'x, ids'}) {
    const b = ids[this.thread.z][this.thread.y];
    const r0 = ${row(0)};
    const r1 = ${row(1)};
    const r2 = ${row(2)};
    const r3 = ${row(3)};
    const c = ${layout.column} + b * ${layout.columnStep};
    const t = ${slots === 1 ? 'this.thread.z' : `this.thread.z * ${slots} + this.thread.y`};
    let s0 = 0; let s1 = 0; let s2 = 0; let s3 = 0;
    for (let k = 0; k < ${columns}; k++) {
      const v = x[t][k];
      s0 += ${weight}[r0][c + k] * v;
      s1 += ${weight}[r1][c + k] * v;
      s2 += ${weight}[r2][c + k] * v;
      s3 += ${weight}[r3][c + k] * v;
    }
    return [s0, s1, s2, s3];
  }`;
}

/** out[t][m] = sum_j shares[t][j] x[t][j][m] */
function weightedSumSource(slots: number): string {
  return `function (x, shares) {
    let sum = 0;
    for (let j = 0; j < ${slots}; j++) {
      sum += shares[this.thread.y][j] * x[this.thread.y * ${slots} + j][this.thread.x];
    }
    return sum;
  }`;
}
