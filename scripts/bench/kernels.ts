/**
 * How fast is the arithmetic of one rank? Times matrix-vector and matrix-matrix products by weight type, and attention
 * by cache layout, on one backend. Prints a row and a JSON line per case; checks the first results before timing.
 * Makes its f16 and quantised inputs with ggml's encoders, for other backends too.
 *   node dist/scripts/bench/kernels.js gemv,gemm,attend --backend ggml --threads 1 --device '' --seconds 0.3
 */
import { execFileSync } from 'node:child_process';
import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import { createGgmlKernels } from '../../worker/kernels/ggml/ggml.ts';
import { quantize } from '../../worker/kernels/ggml/quantize.ts';
import { createGpuJsKernels } from '../../worker/kernels/gpujs/gpujs-kernels.ts';
import type { Kernels, Ops, Tensor, TensorType } from '../../worker/kernels/kernels.ts';
import { createReferenceKernels } from '../../worker/kernels/reference.ts';

const SEED = 1;
const WEIGHT_TYPES: readonly TensorType[] = ['f32', 'f16', 'bf16', 'q8_0', 'q4_0', 'q4_1', 'q4_K', 'q6_K'];

/** [label, groups G, heads H, tokens T, positions S, key columns, value columns]; values are the first columns of keys. */
const LAYOUTS = [
  ['GQA 9/3 heads of 64, decode', 3, 9, 1, 256, 64, 64],
  ['GQA 9/3 heads of 64, decode', 3, 9, 1, 8192, 64, 64],
  ['GQA 9/3 heads of 64, prefill', 3, 9, 256, 512, 64, 64],
  ['MLA 9 heads, latent 128 + 64, decode', 1, 9, 1, 256, 192, 128],
  ['MLA 9 heads, latent 128 + 64, decode', 1, 9, 1, 8192, 192, 128],
  ['MLA 9 heads, latent 128 + 64, prefill', 1, 9, 256, 512, 192, 128],
  ['TPLA 9 heads, latent 72 + 48, decode', 1, 9, 1, 8192, 120, 72],
  ['TPLA 9 heads, latent 80 + 48, decode', 1, 9, 1, 8192, 128, 80],
  ['TPLA 9 heads, latent 72 + 48, block', 1, 9, 256, 1024, 120, 72],
  ['MLA 128 heads, latent 512 + 64, decode', 1, 128, 1, 2048, 576, 512],
] as const;

interface Case {
  readonly name: string;
  readonly flops: number;
  readonly bytes: number;
  /** Reads the tensor once per run; the rest of the traffic is small beside it. */
  readonly record: (ops: Ops) => Tensor;
  /** First numbers of the result, in float64. */
  readonly expected: readonly number[];
}

interface Timing {
  readonly p50: number;
  readonly p99: number;
  readonly n: number;
}

function main(): void {
  const { values: flags, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      backend: { type: 'string', default: 'ggml' },
      threads: { type: 'string', default: '1' },
      device: { type: 'string', default: '' },
      seconds: { type: 'string', default: '0.3' },
    },
  });
  const questions = (positionals[0] ?? 'gemv,gemm,attend').split(',');
  using kernels = open(flags.backend, Number(flags.threads), flags.device);
  const copyGBs = copyBandwidth();
  console.log(`${kernels.name} on ${kernels.device}; copying memory: ${copyGBs.toFixed(1)} GB/s read and written`);
  for (const question of questions) {
    for (const makeCase of casesOf(question, kernels)) {
      const { timing, maxError, current } = runCase(kernels, makeCase, Number(flags.seconds) * 1000);
      report(kernels, current, timing, maxError, { ...flags, question, copyGBs });
    }
  }
}

function open(backend: string, threads: number, device: string): Kernels {
  if (backend === 'ggml') return createGgmlKernels({ threads, device });
  if (backend === 'gpujs') return createGpuJsKernels({ device });
  if (backend === 'reference') return createReferenceKernels();
  throw new Error(`--backend ${backend}: expected ggml, gpujs or reference`);
}

function casesOf(question: string, kernels: Kernels): readonly ((owned: Tensor[]) => Case)[] {
  const types = WEIGHT_TYPES.filter((type) => kernels.supportsWeights(type));
  if (question === 'gemv') return types.map((type) => (owned) => product(kernels, owned, type, 4096, 4096, 1));
  if (question === 'gemm') return types.map((type) => (owned) => product(kernels, owned, type, 2048, 2048, 256));
  if (question === 'attend') {
    return LAYOUTS.flatMap((layout) =>
      (['f32', 'f16'] as const).map((type) => (owned: Tensor[]) => attention(kernels, owned, type, layout)),
    );
  }
  throw new Error(`${question}: expected gemv, gemm or attend, joined by commas`);
}

function product(
  kernels: Kernels,
  owned: Tensor[],
  type: TensorType,
  rows: number,
  columns: number,
  tokens: number,
): Case {
  const bytes = quantize(type, random(rows * columns), rows, columns);
  const weight = keep(owned, kernels.allocate(type, [rows, columns]));
  kernels.upload(weight, bytes);
  const input = random(tokens * columns);
  const x = keep(owned, place(kernels, input, [tokens, columns]));
  const decoded = decodeRows(kernels, weight, 8, columns);
  const expected = Array.from({ length: 8 }, (_, m) => dot(decoded, m * columns, input, 0, columns));
  return {
    name: `${type} [${rows}, ${columns}] x ${tokens}`,
    flops: 2 * rows * columns * tokens,
    bytes: bytes.byteLength,
    record: (ops) => ops.matmul(weight, x),
    expected,
  };
}

function attention(kernels: Kernels, owned: Tensor[], type: 'f32' | 'f16', layout: (typeof LAYOUTS)[number]): Case {
  const [label, G, H, T, S, dk, dv] = layout;
  const query = random(H * T * dk);
  const q = keep(owned, place(kernels, query, [H, T, dk]));
  const rows = keep(owned, kernels.allocate(type, [S, G * dk]));
  kernels.upload(rows, quantize(type, random(S * G * dk), S, G * dk));
  // Causal: token t is at position S - T + t.
  const visible = (t: number): number => S - T + t + 1;
  const hidden = Float32Array.from({ length: T * S }, (_, i) => (i % S < visible(Math.floor(i / S)) ? 0 : -Infinity));
  const mask = keep(owned, place(kernels, hidden, [T, S]));
  const scale = dk ** -0.5;
  const decoded = decodeRows(kernels, rows, visible(0), G * dk);
  const scores = Array.from({ length: visible(0) }, (_, s) => scale * dot(decoded, s * G * dk, query, 0, dk));
  const weights = scores.map((score) => Math.exp(score - (scores[0] ?? 0)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const expected = Array.from(
    { length: 8 },
    (_, i) => weights.reduce((sum, weight, s) => sum + weight * (decoded[s * G * dk + i] ?? NaN), 0) / total,
  );
  return {
    name: `${label}, ${S} positions, ${type}`,
    flops: 2 * H * T * S * (dk + dv),
    bytes: S * G * dk * (type === 'f32' ? 4 : 2),
    record: (ops) => {
      const keys = ops.permute(ops.reshape(rows, [S, G, dk]), [1, 0, 2]);
      return ops.attend(q, keys, ops.slice(keys, 2, 0, dv), mask, { scale, softcap: 0 });
    },
    expected,
  };
}

function runCase(
  kernels: Kernels,
  makeCase: (owned: Tensor[]) => Case,
  limitMs: number,
): { timing: Timing; maxError: number; current: Case } {
  const owned: Tensor[] = [];
  const current = makeCase(owned);
  using programs = kernels.compile([(ops) => [current.record(ops)]]);
  programs.run(0);
  const out = new Float32Array(current.expected.length);
  const result = programs.outputs[0]?.[0];
  if (result === undefined) throw new Error(`${current.name}: no result`);
  kernels.download(result, out);
  const maxError = Math.max(...current.expected.map((value, i) => Math.abs(value - (out[i] ?? NaN))));
  const timing = time(() => programs.run(0), limitMs);
  kernels.release(owned);
  return { timing, maxError, current };
}

/** Milliseconds per call after the warm-up that the check was. */
function time(work: () => void, limitMs: number): Timing {
  const samples: number[] = [];
  const start = performance.now();
  do {
    const before = performance.now();
    work();
    samples.push(performance.now() - before);
  } while (performance.now() - start < limitMs);
  samples.sort((a, b) => a - b);
  const at = (share: number): number => samples[Math.floor(share * (samples.length - 1))] ?? NaN;
  return { p50: at(0.5), p99: at(0.99), n: samples.length };
}

function report(kernels: Kernels, current: Case, timing: Timing, maxError: number, flags: object): void {
  const gflops = current.flops / timing.p50 / 1e6;
  const gbs = current.bytes / timing.p50 / 1e6;
  console.log(
    `${current.name.padEnd(56)} p50 ${timing.p50.toFixed(3)} ms  p99 ${timing.p99.toFixed(3)}  n ${timing.n}  ` +
      `${gflops.toFixed(1)} GFLOP/s  ${gbs.toFixed(1)} GB/s  error ${maxError.toExponential(1)}`,
  );
  const machine = { cpu: cpus()[0]?.model, cores: cpus().length, device: kernels.device, node: process.version };
  const result = { case: current.name, ...timing, gflops, gbs, maxError };
  console.log(JSON.stringify({ bench: 'kernels', ...result, ...flags, ...machine, commit: commit(), seed: SEED }));
}

function commit(): string {
  return execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).trim();
}

/** What the memory can do: 64 MiB copied, counted once read and once written. */
function copyBandwidth(): number {
  const [from, to] = [new Float64Array(2 ** 23).fill(1), new Float64Array(2 ** 23).fill(2)];
  return (2 * from.byteLength) / time(() => to.set(from), 200).p50 / 1e6;
}

function decodeRows(kernels: Kernels, table: Tensor, rows: number, columns: number): Float32Array {
  const indices = kernels.allocate('i32', [rows]);
  kernels.upload(indices, new Uint8Array(Int32Array.from({ length: rows }, (_, i) => i).buffer));
  using programs = kernels.compile([(ops) => [ops.gatherRows(table, indices)]]);
  programs.run(0);
  const decoded = new Float32Array(rows * columns);
  const output = programs.outputs[0]?.[0];
  if (output !== undefined) kernels.download(output, decoded);
  kernels.release([indices]);
  return decoded;
}

function place(kernels: Kernels, data: Float32Array, shape: readonly number[]): Tensor {
  const tensor = kernels.allocate('f32', shape);
  kernels.upload(tensor, new Uint8Array(data.buffer));
  return tensor;
}

function keep(owned: Tensor[], tensor: Tensor): Tensor {
  owned.push(tensor);
  return tensor;
}

function dot(a: Float32Array, aStart: number, b: Float32Array, bStart: number, length: number): number {
  let sum = 0;
  for (let i = 0; i < length; i++) sum += (a[aStart + i] ?? NaN) * (b[bStart + i] ?? NaN);
  return sum;
}

/** Uniform in -1 .. 1, the same on every machine. */
function random(length: number): Float32Array {
  let state = SEED;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state / 2 ** 31;
  });
}

main();
