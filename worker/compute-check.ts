/**
 * How fast this rank's backend computes, in numbers that people compare: a matrix-vector product, which decode waits for
 * (bytes of weights read per second), and a matrix-matrix product, which prefill waits for. For `tpla doctor`; takes about
 * half a second on ggml. Read next: scripts/bench/kernels.ts for every weight type and attention layout.
 */
import { invariant } from '../config/errors.ts';
import type { Kernels, TensorType } from './kernels/kernels.ts';

/** Larger than the caches of most cores, small beside any model. */
const vectorShape = { rows: 4096, cols: 4096 };
const matrixShape = { rows: 512, cols: 512 };
const matrixTokens = 64;
const secondsEach = 0.2;

export interface ComputeSpeed {
  readonly gigabytesPerSecond: number;
  readonly gigaflopsPerSecond: number;
}

export function checkCompute(kernels: Kernels): ComputeSpeed {
  const type: TensorType = kernels.supportsWeights('f16') ? 'f16' : 'f32';
  const bytes = vectorShape.rows * vectorShape.cols * (type === 'f16' ? 2 : 4);
  const flops = 2 * matrixShape.rows * matrixShape.cols * matrixTokens;
  return {
    gigabytesPerSecond: bytes / secondsOf(kernels, type, vectorShape, 1) / 1e9,
    gigaflopsPerSecond: flops / secondsOf(kernels, type, matrixShape, matrixTokens) / 1e9,
  };
}

/** Median of one product. */
function secondsOf(
  kernels: Kernels,
  type: TensorType,
  { rows, cols }: { readonly rows: number; readonly cols: number },
  tokens: number,
): number {
  const weight = kernels.allocate(type, [rows, cols]);
  const x = kernels.allocate('f32', [tokens, cols]);
  const programs = kernels.compile([(ops) => [ops.matmul(weight, x)]]);
  const output = programs.outputs[0]?.[0];
  invariant(output !== undefined, 'a program without an output');
  const first = new Float32Array(1);
  const once = (): number => {
    const started = performance.now();
    programs.run(0);
    // On a device of its own the product is done only when its result has arrived.
    kernels.download(output, first);
    return (performance.now() - started) / 1000;
  };
  once();
  const seconds: number[] = [];
  const end = performance.now() + secondsEach * 1000;
  do seconds.push(once());
  while (performance.now() < end);
  programs[Symbol.dispose]();
  kernels.release([weight, x]);
  return seconds.sort((a, b) => a - b)[Math.floor(seconds.length / 2)] ?? 0;
}
