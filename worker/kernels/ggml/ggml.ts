/**
 * The default backend: ggml's prebuilt libraries called through koffi, on the CPU or on any device they know. Every
 * step is one foreign call per upload, run or download; nothing is allocated for it.
 * Next: ops.ts (what a program consists of), library.ts (where ggml comes from).
 */
import type { Kernels, ProgramBuilder, ProgramSet, Tensor, TensorType, TensorUse } from '../kernels.ts';
import { CONSTANT_LENGTH, WIDEN_BLOCKS, WIDEN_ROWS, type Constants } from './compound.ts';
import type { GgmlFunctions, Pointer } from './functions.ts';
import { openContext } from './graph.ts';
import { adviseHugePages, zeroPages } from './pages.ts';
import { BackendUnavailable, loadGgml, type GgmlLibrary } from './library.ts';
import { compilePrograms } from './programs.ts';
import { RepackedMemory } from './repack.ts';
import {
  GgmlTensor,
  NO_POINTER,
  STORAGE,
  byteLength,
  check,
  checkShape,
  describe,
  elements,
  ggmlShape,
  isRepacked,
  paddingRowsOf,
  type Layout,
  type Memory,
  type Origin,
} from './tensor.ts';
import { DeviceThreads } from './threads.ts';

export interface GgmlOptions {
  /** CPU threads per program run. One per rank and one rank per core is the fast shape on one machine. */
  readonly threads: number;
  /** Name of a ggml device; '' is the CPU. */
  readonly device: string;
}

/** @throws BackendUnavailable when ggml is not installed, has another version, or knows no such device */
export function createGgmlKernels(options: GgmlOptions): Kernels {
  const { threads, device: name } = options;
  check(Number.isSafeInteger(threads) && threads >= 1, `${threads} threads: must be a positive integer`);
  const library = loadGgml(name !== '');
  const device = findDevice(library.functions, name === '' ? 'CPU' : name);
  return new GgmlKernels(library, device, threads);
}

class GgmlKernels implements Kernels {
  readonly name = 'ggml';
  readonly device: string;
  readonly #functions: GgmlFunctions;
  readonly #backend: Pointer;
  readonly #tensors = new Set<GgmlTensor>();
  readonly #constants: Constants;
  readonly #repacked: RepackedMemory;
  readonly #threads: DeviceThreads;
  readonly #onCpu: boolean;
  #disposed = false;

  constructor(library: GgmlLibrary, device: Pointer, threads: number) {
    const { functions } = library;
    this.#functions = functions;
    const backend = functions.deviceInit(device, null);
    if (backend === null) throw new BackendUnavailable(`ggml: device ${functions.deviceName(device)} does not start`);
    this.#backend = backend;
    this.#repacked = new RepackedMemory(functions, device, backend);
    this.#threads = new DeviceThreads(functions, device, backend, threads);
    const onCpu = functions.deviceName(device) === 'CPU';
    this.#onCpu = onCpu;
    this.device = [
      functions.deviceDescription(device),
      ...(onCpu && library.cpuVariant !== '' ? [library.cpuVariant] : []),
      ...(onCpu ? [`${threads} ${threads === 1 ? 'thread' : 'threads'}`] : []),
    ].join(', ');
    this.#constants = {
      ones: this.#place('f32', new Float32Array(CONSTANT_LENGTH).fill(1)),
      veryLow: this.#place('f32', new Float32Array(CONSTANT_LENGTH).fill(-1e30)),
      rowNumbers: this.#place(
        'i32',
        Int32Array.from({ length: WIDEN_BLOCKS * WIDEN_ROWS }, (_, i) => i % WIDEN_ROWS),
        [WIDEN_BLOCKS, WIDEN_ROWS],
      ),
    };
  }

  supportsWeights(type: TensorType): boolean {
    return type !== 'i32';
  }

  repacks(type: TensorType, shape: readonly number[]): boolean {
    return this.#repacked.repacks(type, shape);
  }

  allocate(type: TensorType, shape: readonly number[], use: TensorUse = 'any'): GgmlTensor {
    checkShape(type, shape);
    if (elements(shape) === 0) return this.#keep(type, shape, NO_POINTER, undefined);
    const repacked = use === 'matmul' ? this.#repacked.allocate(type, shape) : undefined;
    if (repacked !== undefined) {
      const { context, tensor, layout, paddingRows } = repacked;
      return this.#keep(type, shape, tensor, { context, buffer: undefined }, layout, paddingRows);
    }
    const functions = this.#functions;
    const context = openContext(functions, functions.tensorOverhead());
    const pointer = functions.newTensor(context, STORAGE[type].id, ...ggmlShape(shape));
    const buffer = functions.allocateContext(context, this.#backend);
    if (buffer === null) {
      functions.free(context);
      check(false, `no memory for ${type} [${shape.join(', ')}], ${byteLength(type, shape)} bytes, on ${this.device}`);
    }
    const tensor = this.#keep(type, shape, pointer, { context, buffer });
    this.#clear(tensor, buffer, use);
    return tensor;
  }

  release(tensors: readonly Tensor[]): void {
    for (const tensor of tensors) this.#releaseOne(this.#allocated(tensor, 'release'));
  }

  sizeOf(tensor: Tensor): number {
    const { pointer, shape } = this.#allocated(tensor, 'size');
    return elements(shape) === 0 ? 0 : Number(this.#functions.tensorBytes(pointer));
  }

  upload(tensor: Tensor, bytes: Uint8Array, offsetBytes = 0): void {
    const target = this.#allocated(tensor, 'upload');
    const { bytes: size } = target;
    check(
      offsetBytes >= 0 && offsetBytes + bytes.byteLength <= size,
      () => `upload of ${bytes.byteLength} bytes at ${offsetBytes} to ${describe(tensor)}, which has ${size}`,
    );
    if (bytes.byteLength === 0) return;
    if (isRepacked(target)) {
      check(bytes.byteLength === size, () => `upload of a part of ${describe(tensor)}, which was allocated for matmul`);
      const [, columns = 0] = target.shape;
      return this.#repacked.upload(target.pointer, bytes, byteLength(target.type, [paddingRowsOf(target), columns]));
    }
    this.#functions.tensorSet(target.pointer, bytes, offsetBytes, bytes.byteLength);
  }

  download(tensor: Tensor, out: Float32Array): void {
    check(tensor instanceof GgmlTensor, () => `download of ${describe(tensor)}, which belongs to another backend`);
    const { origin, bytes } = tensor;
    check(origin.kind !== 'allocated' || !origin.released, () => `download of released ${describe(tensor)}`);
    check(
      tensor.type === 'f32' && out.byteLength <= bytes,
      () => `download of ${out.length} floats from ${describe(tensor)}, which has ${bytes} bytes`,
    );
    if (out.length === 0) return;
    this.#functions.tensorGet(tensor.pointer, out, 0, out.byteLength);
  }

  compile(builders: readonly ProgramBuilder[]): ProgramSet {
    return compilePrograms(this.#functions, this.#backend, this.#constants, builders);
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const tensor of this.#tensors) this.#releaseOne(tensor);
    this.#repacked.free();
    this.#functions.backendFree(this.#backend);
    this.#threads.free();
  }

  #clear({ pointer, type, shape }: GgmlTensor, buffer: Pointer, use: TensorUse): void {
    const functions = this.#functions;
    const bytes = byteLength(type, shape);
    const base = this.#onCpu ? functions.tensorData(pointer) : NO_POINTER;
    const pages = this.#onCpu && use === 'rows' ? zeroPages(base, bytes) : undefined;
    if (pages === undefined) {
      if (this.#onCpu) adviseHugePages(base, bytes);
      return functions.bufferClear(buffer, 0);
    }
    const before = Number(pages.start - base);
    const after = Number(pages.end - base);
    functions.tensorSet(pointer, new Uint8Array(before), 0, before);
    functions.tensorSet(pointer, new Uint8Array(bytes - after), after, bytes - after);
  }

  #place(
    type: 'f32' | 'i32',
    values: Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer>,
    shape: readonly number[] = [values.length],
  ): GgmlTensor {
    const tensor = this.allocate(type, shape);
    this.upload(tensor, new Uint8Array(values.buffer));
    return tensor;
  }

  #keep(
    type: TensorType,
    shape: readonly number[],
    pointer: Pointer,
    memory: Memory | undefined,
    layout: Layout = 'rows',
    paddingRows = 0,
  ): GgmlTensor {
    const origin: Origin = { kind: 'allocated', memory, layout, paddingRows, released: false };
    const tensor = new GgmlTensor({ type, shape: [...shape], pointer, origin });
    this.#tensors.add(tensor);
    return tensor;
  }

  #allocated(tensor: Tensor, what: string): GgmlTensor {
    check(
      tensor instanceof GgmlTensor && this.#tensors.has(tensor),
      () => `${what} of ${describe(tensor)}, which this backend has not allocated or has released`,
    );
    return tensor;
  }

  #releaseOne(tensor: GgmlTensor): void {
    const { origin } = tensor;
    if (origin.kind !== 'allocated') return;
    this.#tensors.delete(tensor);
    origin.released = true;
    if (origin.memory === undefined) return;
    if (origin.memory.buffer !== undefined) this.#functions.bufferFree(origin.memory.buffer);
    this.#functions.free(origin.memory.context);
  }
}

function findDevice(functions: GgmlFunctions, name: string): Pointer {
  const device = functions.deviceByName(name);
  if (device !== null) return device;
  const known = Array.from({ length: functions.deviceCount() }, (_, index) => {
    const each = functions.deviceAt(index);
    return `${functions.deviceName(each)} (${functions.deviceDescription(each)})`;
  });
  throw new BackendUnavailable(`ggml: no device ${name}; known: ${known.join(', ')}`);
}
