/**
 * Which gpu.js mode a rank uses. A mode counts only if it computes a small program as the reference backend does, so a
 * broken driver is left out, or refused where it was asked for by name. WebGPU is refused: gpu.js reads its results
 * asynchronously, and kernels are synchronous.
 */
import { GPU } from 'gpu.js';
import { ConfigError, messageOf } from '../../../config/errors.ts';
import type { Kernels, Tensor } from '../kernels.ts';
import { createReferenceKernels } from '../reference.ts';
import type { GpuJsMode } from './kernel-cache.ts';

/** What `device` may be. On a CPU, plain JavaScript is the default: it reads weights in place, WebAssembly copies them. */
const DEVICES: ReadonlyMap<string, GpuJsMode> = new Map([
  ['gpu', 'headlessgl'],
  ['webgl', 'headlessgl'],
  ['wasm', 'webasm'],
  ['cpu', 'cpu'],
]);

type OpenMode = (mode: GpuJsMode) => Kernels;

/** The mode, and why a better one was passed over ('' if none was). */
export interface Choice {
  readonly mode: GpuJsMode;
  readonly remark: string;
}

export function chooseMode(device: string, open: OpenMode): Choice {
  if (device === '') return bestMode(open);
  const mode = DEVICES.get(device);
  if (mode === undefined) {
    const names = [...DEVICES.keys()].join(', ');
    const why = device === 'webgpu' ? ' (gpu.js reads WebGPU results asynchronously; kernels are synchronous)' : '';
    throw new ConfigError(`device ${device} of backend gpujs${why}: use ${names} or none`);
  }
  const reason = whyUnusable(mode, open);
  if (reason === null) return { mode, remark: '' };
  throw new ConfigError(`device ${device} of backend gpujs does not work here (${reason}): use wasm, cpu or none`);
}

/** WebGL only where it wins: drivers that emulate a GPU on the CPU pass every check and take four times as long. */
function bestMode(open: OpenMode): Choice {
  const reason = whyUnusable('headlessgl', open);
  if (reason !== null) return { mode: 'cpu', remark: `no WebGL: ${reason}` };
  const webglMs = timeFeedForward('headlessgl', open);
  const cpuMs = timeFeedForward('cpu', open);
  if (webglMs < cpuMs) return { mode: 'headlessgl', remark: '' };
  return { mode: 'cpu', remark: `WebGL took ${webglMs.toFixed(1)} ms for what took ${cpuMs.toFixed(1)} ms here` };
}

/** null if the mode works. */
function whyUnusable(mode: GpuJsMode, open: OpenMode): string | null {
  return withCollectedWarnings((warnings) => {
    const missing = whyMissing(mode);
    if (missing !== null) return [missing, ...warnings].join(': ');
    try {
      using kernels = open(mode);
      using reference = createReferenceKernels();
      const actual = probe(kernels);
      const expected = probe(reference);
      const error = actual.reduce((max, value, i) => Math.max(max, Math.abs(value - expected[i]!)), 0);
      return error < 1e-3 ? null : `results are off by ${error}`;
    } catch (reason) {
      return messageOf(reason);
    }
  });
}

function whyMissing(mode: GpuJsMode): string | null {
  switch (mode) {
    case 'headlessgl':
      return GPU.isHeadlessGLSupported ? null : 'the optional package gl is not installed or finds no display';
    case 'webasm':
      return GPU.isWebAssemblySupported ? null : 'this Node has no WebAssembly';
    case 'cpu':
      return null;
  }
}

/** gpu.js prints what goes wrong while it looks for a GPU; here that is an answer, not news. */
function withCollectedWarnings<Result>(body: (warnings: readonly string[]) => Result): Result {
  const warnings: string[] = [];
  const print = console.warn;
  console.warn = (...parts: unknown[]) => warnings.push(parts.map(messageOf).join(' '));
  try {
    return body(warnings);
  } finally {
    console.warn = print;
  }
}

/** A little of everything: a norm, a product, a masked attention. */
function probe(kernels: Kernels): Float32Array {
  const x = placeSine(kernels, [2, 18], 1);
  const weight = placeSine(kernels, [18, 18], 1.7);
  const rows = placeSine(kernels, [1, 5, 6], 0.3);
  const mask = kernels.allocate('f32', [2, 5]);
  kernels.upload(mask, new Uint8Array(Float32Array.from({ length: 3 }, () => -Infinity).buffer), 28);
  using programs = kernels.compile([
    (ops) => {
      const product = ops.matmul(weight, ops.rmsNorm(x, 1e-5));
      const q = ops.permute(ops.reshape(product, [2, 3, 6]), [1, 0, 2]); // [heads, tokens, dim]
      const attended = ops.attend(q, rows, rows, mask, { scale: 0.4, softcap: 20 });
      return [ops.gated(attended, ops.contiguous(q), 'silu')];
    },
  ]);
  programs.run(0);
  const out = new Float32Array(36);
  kernels.download(programs.outputs[0]![0]!, out);
  return out;
}

/** Milliseconds of a feed-forward block of a small model, the best of five after one to compile. */
function timeFeedForward(mode: GpuJsMode, open: OpenMode): number {
  using kernels = open(mode);
  const x = placeSine(kernels, [1, 576], 1);
  const up = placeSine(kernels, [1536, 576], 1.3);
  const down = placeSine(kernels, [576, 1536], 1.7);
  using programs = kernels.compile([
    (ops) => {
      const inner = ops.matmul(up, ops.rmsNorm(x, 1e-5));
      return [ops.add(x, ops.matmul(down, ops.gated(inner, inner, 'silu')))];
    },
  ]);
  programs.run(0);
  let bestMs = Infinity;
  for (let i = 0; i < 5; i++) {
    const start = performance.now();
    programs.run(0);
    bestMs = Math.min(bestMs, performance.now() - start);
  }
  return bestMs;
}

function placeSine(kernels: Kernels, shape: readonly number[], step: number): Tensor {
  const tensor = kernels.allocate('f32', shape);
  const length = shape.reduce((product, size) => product * size, 1);
  kernels.upload(tensor, new Uint8Array(Float32Array.from({ length }, (_, i) => Math.sin(i * step)).buffer));
  return tensor;
}
