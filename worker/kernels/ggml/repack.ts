/**
 * Matrices in the layouts of ggml's own buffer types for this CPU (AMX tiles, interleaved rows), in which products run
 * 2 to 6 times as fast as on rows as they lie in files. Only quantised types: for them the result is the same up to the
 * order of sums, while float weights would be rounded. Uploading repacks; nothing but `matmul` can read such a tensor.
 * Many matrices share a buffer, so that large pages can back it; memory comes back when the backend is disposed.
 */
import type { TensorType } from '../kernels.ts';
import { captureLog, extraBufferTypes, type GgmlFunctions, type Pointer } from './functions.ts';
import { openContext } from './graph.ts';
import { adviseHugePages } from './pages.ts';
import { STORAGE, check, ggmlShape, type Layout } from './tensor.ts';

/** ggml's tiles hold whole groups of so many rows; with them a matrix of 1024 is multiplied five times as fast as one of 1008. */
const ROWS_AT_ONCE = 32;
/** Of smaller matrices the zeros would be a larger part. */
const LEAST_ROWS_TO_PAD = 128;

/** Untouched memory of the last buffer costs nothing. */
const BUFFER_BYTES = 64 * 2 ** 20;

interface Arena {
  readonly layout: Layout;
  readonly bufferType: Pointer;
  readonly alignment: number;
  readonly buffers: { readonly pointer: Pointer; readonly base: Pointer; readonly bytes: number }[];
  /** Of the last buffer. */
  usedBytes: number;
}

export interface Repacked {
  readonly layout: Layout;
  readonly context: Pointer;
  readonly tensor: Pointer;
  /** Rows of zeros behind those that were asked for. */
  readonly paddingRows: number;
}

export class RepackedMemory {
  readonly #functions: GgmlFunctions;
  readonly #backend: Pointer;
  readonly #arenas: readonly Arena[];

  constructor(functions: GgmlFunctions, device: Pointer, backend: Pointer) {
    this.#functions = functions;
    this.#backend = backend;
    const list = functions.procAddress(functions.deviceRegistry(device), 'ggml_backend_dev_get_extra_bufts');
    const types = list === null ? [] : extraBufferTypes(list, device);
    this.#arenas = types.map((bufferType) => ({
      layout: functions.bufferTypeName(bufferType) === 'AMX' ? 'tiles' : 'repacked',
      bufferType,
      alignment: functions.bufferTypeAlignment(bufferType),
      buffers: [],
      usedBytes: 0,
    }));
  }

  /** Takes memory for a matrix in the best layout that can multiply it. undefined: keep it as it is. */
  allocate(type: TensorType, shape: readonly number[]): Repacked | undefined {
    if (STORAGE[type].block === 1 || shape.length !== 2) return undefined;
    const [rows = 0, columns = 0] = shape;
    const filled = Math.ceil(rows / ROWS_AT_ONCE) * ROWS_AT_ONCE;
    const heights = filled > rows && rows >= LEAST_ROWS_TO_PAD ? [rows, filled] : [rows];
    for (const arena of this.#arenas)
      for (const height of heights) {
        const placed = this.#tryArena(arena, type, [height, columns]);
        if (placed !== undefined) return { ...placed, paddingRows: height - rows };
      }
    return undefined;
  }

  repacks(type: TensorType, shape: readonly number[]): boolean {
    const before = this.#arenas.map(({ usedBytes }) => usedBytes);
    const repacked = this.allocate(type, shape);
    if (repacked === undefined) return false;
    this.#functions.free(repacked.context);
    this.#arenas.forEach((arena, i) => {
      arena.usedBytes = before[i] ?? 0;
    });
    return true;
  }

  /** ggml reports every matrix that it repacks on stderr, where a worker reports failures. */
  upload(tensor: Pointer, bytes: Uint8Array, paddingBytes: number): void {
    // Zero bytes are zeros in every type of blocks.
    const whole = paddingBytes === 0 ? bytes : new Uint8Array(bytes.byteLength + paddingBytes);
    if (whole !== bytes) whole.set(bytes);
    captureLog(this.#functions, () => this.#functions.tensorSet(tensor, whole, 0, whole.byteLength));
  }

  free(): void {
    for (const { buffers } of this.#arenas) for (const { pointer } of buffers) this.#functions.bufferFree(pointer);
  }

  #tryArena(arena: Arena, type: TensorType, shape: readonly number[]): Omit<Repacked, 'paddingRows'> | undefined {
    const context = openContext(this.#functions, this.#functions.tensorOverhead());
    const tensor = this.#functions.newTensor(context, STORAGE[type].id, ...ggmlShape(shape));
    if (this.#place(arena, tensor, shape)) return { context, tensor, layout: arena.layout };
    this.#functions.free(context);
    return undefined;
  }

  /** A device says whether it can multiply only once the matrix has a place. */
  #place(arena: Arena, tensor: Pointer, shape: readonly number[]): boolean {
    const functions = this.#functions;
    const bytes = functions.bufferTypeSize(arena.bufferType, tensor);
    const last = arena.buffers.at(-1);
    const start = Math.ceil(arena.usedBytes / arena.alignment) * arena.alignment;
    const buffer = last !== undefined && start + bytes <= last.bytes ? last : this.#addBuffer(arena, bytes);
    const offset = buffer === last ? start : 0;
    const status = functions.tensorPlace(buffer.pointer, tensor, buffer.base + BigInt(offset));
    check(status === 0, `cannot place ${bytes} bytes at ${offset} of a buffer of ${buffer.bytes}`);
    if (!this.#multiplies(tensor, shape)) return false;
    arena.usedBytes = offset + bytes;
    return true;
  }

  #addBuffer(arena: Arena, needed: number): Arena['buffers'][number] {
    const bytes = Math.max(needed, BUFFER_BYTES);
    const pointer = this.#functions.bufferTypeAllocate(arena.bufferType, bytes);
    check(pointer !== null, `no memory for ${bytes} bytes of weights`);
    const base = this.#functions.bufferBase(pointer);
    adviseHugePages(base, bytes);
    const buffer = { pointer, base, bytes };
    arena.buffers.push(buffer);
    arena.usedBytes = 0;
    return buffer;
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
