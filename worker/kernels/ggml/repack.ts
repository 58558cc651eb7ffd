/**
 * Matrices in the layouts of ggml's own buffer types for this CPU (AMX tiles, interleaved rows), in which products run
 * 2 to 6 times as fast as on rows as they lie in files. Only quantised types: for them the result is the same up to the
 * order of sums, while float weights would be rounded. Uploading repacks; nothing but `matmul` can read such a tensor.
 */
import type { TensorType } from '../kernels.ts';
import { captureLog, extraBufferTypes, type GgmlFunctions, type Pointer } from './functions.ts';
import { openContext } from './graph.ts';
import { STORAGE, ggmlShape, type Memory } from './tensor.ts';

export class RepackedMemory {
  readonly #functions: GgmlFunctions;
  readonly #backend: Pointer;
  readonly #bufferTypes: readonly Pointer[];

  constructor(functions: GgmlFunctions, device: Pointer, backend: Pointer) {
    this.#functions = functions;
    this.#backend = backend;
    const list = functions.procAddress(functions.deviceRegistry(device), 'ggml_backend_dev_get_extra_bufts');
    this.#bufferTypes = list === null ? [] : extraBufferTypes(list, device);
  }

  /** Takes memory for a matrix in the best layout that can multiply it. undefined: keep it as it is. */
  allocate(type: TensorType, shape: readonly number[]): { pointer: Pointer; memory: Memory } | undefined {
    if (STORAGE[type].block === 1 || shape.length !== 2) return undefined;
    for (const bufferType of this.#bufferTypes) {
      const context = openContext(this.#functions, this.#functions.tensorOverhead());
      const pointer = this.#functions.newTensor(context, STORAGE[type].id, ...ggmlShape(shape));
      const buffer = this.#functions.allocateContextIn(context, bufferType);
      if (buffer !== null && this.#multiplies(pointer, shape)) return { pointer, memory: { context, buffer } };
      if (buffer !== null) this.#functions.bufferFree(buffer);
      this.#functions.free(context);
    }
    return undefined;
  }

  /** ggml reports every matrix that it repacks on stderr, where a worker reports failures. */
  upload(pointer: Pointer, bytes: Uint8Array): void {
    captureLog(this.#functions, () => this.#functions.tensorSet(pointer, bytes, 0, bytes.byteLength));
  }

  #multiplies(weight: Pointer, shape: readonly number[]): boolean {
    const functions = this.#functions;
    const context = openContext(functions, 2 * functions.tensorOverhead());
    const x = functions.newTensor(context, STORAGE.f32.id, ...ggmlShape([1, shape[1] ?? 0]));
    const supported = functions.backendSupports(this.#backend, functions.mulMat(context, weight, x));
    functions.free(context);
    return supported;
  }
}
