/**
 * Which gpu.js mode a rank uses. A mode counts only if it computes a small program as the reference backend does, so a
 * broken driver is left out, or refused where it was asked for by name. WebGPU is refused: gpu.js reads its results
 * asynchronously, and kernels are synchronous.
 */
import { GPU } from 'gpu.js';
import { ConfigError, messageOf } from '../../../config/errors.ts';
import type { Kernels } from '../kernels.ts';
import { createReferenceKernels } from '../reference.ts';
import type { GpuJsMode } from './kernel-cache.ts';

/** What `device` may be, best first, and the modes it stands for. */
const DEVICES: Readonly<Record<string, readonly GpuJsMode[]>> = {
  // A GPU if there is one. On a CPU, plain JavaScript before WebAssembly: it reads weights in place and ran a
  // [1536, 576] matrix times a vector at 1.8 GFLOP/s against 1.3 on the machine where this was written.
  '': ['headlessgl', 'webgl2', 'webgl', 'cpu'],
  gpu: ['headlessgl', 'webgl2', 'webgl'],
  webgl: ['headlessgl', 'webgl2', 'webgl'],
  wasm: ['webasm'],
  cpu: ['cpu'],
};

export function chooseMode(device: string, open: (mode: GpuJsMode) => Kernels): GpuJsMode {
  const modes = DEVICES[device];
  if (modes === undefined) {
    const names = Object.keys(DEVICES).filter((name) => name !== '');
    const why = device === 'webgpu' ? ' (gpu.js reads WebGPU results asynchronously; kernels are synchronous)' : '';
    throw new ConfigError(`device ${device} of backend gpujs${why}: use ${names.join(', ')} or none`);
  }
  const reasons: string[] = [];
  for (const mode of modes) {
    const reason = whyUnusable(mode, open);
    if (reason === null) return mode;
    reasons.push(`${mode}: ${reason}`);
  }
  throw new ConfigError(
    `device ${device || 'default'} of backend gpujs does not work here (${reasons.join('; ')}): use wasm, cpu or none`,
  );
}

/** null if the mode works. */
function whyUnusable(mode: GpuJsMode, open: (mode: GpuJsMode) => Kernels): string | null {
  return withCollectedWarnings((warnings) => {
    if (!isSupported(mode)) return warnings.at(-1) ?? 'not supported by this machine or installation';
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

function isSupported(mode: GpuJsMode): boolean {
  switch (mode) {
    case 'headlessgl':
      return GPU.isHeadlessGLSupported;
    case 'webgl2':
      return GPU.isWebGL2Supported;
    case 'webgl':
      return GPU.isWebGLSupported;
    case 'webasm':
      return GPU.isWebAssemblySupported;
    case 'cpu':
      return true;
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
  const place = (shape: readonly number[], value: (i: number) => number) => {
    const tensor = kernels.allocate('f32', shape);
    const length = shape.reduce((product, size) => product * size, 1);
    kernels.upload(tensor, new Uint8Array(Float32Array.from({ length }, (_, i) => value(i)).buffer));
    return tensor;
  };
  const x = place([2, 18], (i) => Math.sin(i));
  const weight = place([18, 18], (i) => Math.cos(i * 1.7));
  const mask = place([2, 5], (i) => (i < 7 ? 0 : -Infinity));
  const rows = place([1, 5, 6], (i) => Math.sin(i * 0.3));
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
