import { describe, expect, it, vi } from 'vitest';
import { ConfigError } from '../../../../config/errors.ts';
import { createGpuJsKernels } from '../../../../worker/kernels/gpujs/gpujs-kernels.ts';
import { expectClose } from '../../../helpers/expect-close.ts';
import { GPUJS_TOLERANCES } from '../../../helpers/tolerances.ts';
import { describeKernels } from '../../../suites/kernels.ts';
import { expectedMatmul } from '../../../suites/kernels/expected.ts';
import { causalMask, evaluate, place, placeIndices, randomValues, read } from '../../../suites/kernels/harness.ts';

/** After the first runs memory may still move by what the garbage collector has not yet taken. */
const GROWTH_LIMIT_BYTES = 24 * 2 ** 20;

const gpuFailure = whyNoGpu();
if (gpuFailure !== null) it.skip(`gpujs on gpu (${gpuFailure})`, () => undefined);

for (const device of gpuFailure === null ? ['cpu', 'wasm', 'gpu'] : ['cpu', 'wasm']) {
  describeKernels(`gpujs on ${device}`, () => createGpuJsKernels({ device }), { tolerances: GPUJS_TOLERANCES });

  describe(`gpujs on ${device}`, () => {
    it('sums over more columns than the default loop limit of gpu.js', () => {
      using kernels = createGpuJsKernels({ device });
      const weight = randomValues(1, [5, 2051], -0.3, 0.3);
      const x = randomValues(2, [2, 2051], -0.3, 0.3);
      const expected = expectedMatmul(
        { shape: [1, 5, 2051], data: weight.data },
        { shape: [1, 2, 2051], data: x.data },
      );
      const allocated = evaluate(kernels, (ops) => ops.matmul(place(kernels, weight), place(kernels, x)), [2, 5]);
      const computed = evaluate(
        kernels,
        (ops) => ops.matmul(ops.scale(place(kernels, weight), 1), place(kernels, x)),
        [2, 5],
      );
      expectClose(allocated, expected, GPUJS_TOLERANCES.matmul);
      expectClose(computed, expected, GPUJS_TOLERANCES.matmul);
    });

    it('does not grow over 2000 runs of a small program', () => {
      using kernels = createGpuJsKernels({ device });
      using programs = kernels.compile([
        (ops) => {
          const weight = place(kernels, randomValues(3, [48, 48]));
          const cache = kernels.allocate('f32', [32, 48]);
          const mask = place(kernels, { shape: [1, 32], data: causalMask(1, 32, 20) });
          const row = ops.rmsNorm(ops.matmul(weight, place(kernels, randomValues(4, [1, 48]))), 1e-5);
          ops.scatterRows(cache, row, placeIndices(kernels, [20]));
          const keys = ops.reshape(cache, [1, 32, 48]);
          const q = ops.reshape(row, [1, 1, 48]);
          return [ops.gated(ops.attend(q, keys, keys, mask, { scale: 0.1, softcap: 0 }), q, 'silu')];
        },
      ]);
      const out = new Float32Array(48);
      const run = (times: number) => {
        for (let i = 0; i < times; i++) {
          programs.run(0);
          kernels.download(programs.outputs[0]![0]!, out);
        }
        return process.memoryUsage().rss;
      };
      const before = run(500);
      const first = Float32Array.from(out);
      expect(run(2000) - before).toBeLessThan(GROWTH_LIMIT_BYTES);
      expectClose(out, first, { absolute: 0, relative: 0 });
    });
  });
}

describe('the gpujs backend', () => {
  it('chooses a mode without a word and names it', () => {
    const warn = vi.spyOn(console, 'warn');
    using kernels = createGpuJsKernels({ device: '' });
    expect(kernels.device).toMatch(/^gpu\.js in mode (headlessgl|cpu): /);
    const values = randomValues(5, [3]);
    expectClose(read(kernels, place(kernels, values)), values.data, { absolute: 0, relative: 0 });
    expect(warn).not.toHaveBeenCalled();
    warn.mockRestore();
  });

  it('refuses devices that cannot work', () => {
    expect(() => createGpuJsKernels({ device: 'webgpu' })).toThrow(
      'device webgpu of backend gpujs (gpu.js reads WebGPU results asynchronously; kernels are synchronous): ' +
        'use gpu, webgl, wasm, cpu or none',
    );
    expect(() => createGpuJsKernels({ device: 'cuda0' })).toThrow(
      'device cuda0 of backend gpujs: use gpu, webgl, wasm, cpu or none',
    );
  });

  it('refuses quantised weights', () => {
    using kernels = createGpuJsKernels({ device: 'cpu' });
    expect(kernels.supportsWeights('q4_K')).toBe(false);
    expect(() => kernels.allocate('q4_K', [2, 256])).toThrow('allocate: q4_K [2, 256], expected i32, f32, f16, bf16');
  });
});

/** null where WebGL works, as on a desktop with the optional package gl. */
function whyNoGpu(): string | null {
  try {
    createGpuJsKernels({ device: 'gpu' })[Symbol.dispose]();
    return null;
  } catch (error) {
    if (error instanceof ConfigError) return error.message;
    throw error;
  }
}
