/** Opens the backend that the user chose. Each is loaded only when asked for: a machine may lack the others. */
import { ConfigError, messageOf } from '../config/errors.ts';
import type { WorkerOptions } from '../collective/setup.ts';
import type { Kernels } from './kernels/kernels.ts';
import type { Quantize } from './weight-uploader.ts';

export interface Backend {
  readonly kernels: Kernels;
  /** Absent where the backend has no quantisers. */
  readonly quantize: Quantize | undefined;
}

/** @throws ConfigError when the backend or the device is not there, saying what to install or choose */
export async function openBackend(options: Pick<WorkerOptions, 'backend' | 'device' | 'threads'>): Promise<Backend> {
  const { backend, device, threads } = options;
  try {
    switch (backend) {
      case 'ggml': {
        const { createGgmlKernels } = await import('./kernels/ggml/ggml.ts');
        const { quantize } = await import('./kernels/ggml/quantize.ts');
        return { kernels: createGgmlKernels({ threads, device }), quantize };
      }
      case 'gpujs': {
        const { createGpuJsKernels } = await import('./kernels/gpujs/gpujs-kernels.ts');
        return { kernels: createGpuJsKernels({ device }), quantize: undefined };
      }
      case 'reference': {
        const { createReferenceKernels } = await import('./kernels/reference.ts');
        return { kernels: createReferenceKernels(), quantize: undefined };
      }
    }
  } catch (error) {
    // The kernels import nothing of ours, so their refusals are recognised by name.
    if (error instanceof Error && error.name === 'BackendUnavailable')
      throw new ConfigError(`backend ${backend}: ${messageOf(error)}`, { cause: error });
    throw error;
  }
}
