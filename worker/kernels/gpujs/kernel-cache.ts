/**
 * Compiled gpu.js kernels by source and sizes: layers of one shape share them, so a model needs a few dozen.
 * Kernels live until the backend is disposed, or, when a weight is built in, until that weight is released or changes.
 * Next: steps.ts (its user), mode.ts (which gpu.js mode).
 */
import { GPU, HeadlessGLKernel, Input } from 'gpu.js';
import type { IKernelRunShortcut } from 'gpu.js';
import { InvariantError, invariant } from '../../../config/errors.ts';
import type { Storage } from '../reference/strided-tensor.ts';

/** Modes of gpu.js that answer synchronously and exist outside a browser. */
export type GpuJsMode = 'headlessgl' | 'webasm' | 'cpu';

export interface KernelSpec {
  readonly source: string;
  /** Cells along x, y, z. */
  readonly output: readonly [number, number, number];
  /** Numbers that one cell returns; cells beyond `width` numbers per row are dropped. */
  readonly lanes: 1 | 2 | 4;
  readonly width: number;
  /** Real constants of the source. */
  readonly constants: Readonly<Record<string, number>>;
}

/** An array that is part of the kernel (`this.constants.w`), so that it is not copied at every call. */
export interface Resident {
  readonly storage: Storage;
  readonly input: Input;
}

/** gpu.js returns cells as [z][y] rows of numbers, or of short arrays where a cell returns several. */
type Cells = readonly (readonly ArrayLike<number | ArrayLike<number>>[])[];

export class KernelCache implements Disposable {
  readonly mode: GpuJsMode;
  readonly #gpu: GPU;
  readonly #keys = new WeakMap<KernelSpec, string>();
  readonly #shared = new Map<string, IKernelRunShortcut>();
  readonly #resident = new Map<Storage, { version: number; kernels: Map<string, IKernelRunShortcut> }>();

  constructor(mode: GpuJsMode) {
    this.mode = mode;
    this.#gpu = new GPU({ mode });
  }

  /** Runs the kernel and writes its numbers, row after row, to `out` [z, y, width]. A spec always comes with inputs of the same sizes. */
  run(spec: KernelSpec, inputs: readonly Input[], resident: Resident | null, out: Float32Array): void {
    const kernels = resident === null ? this.#shared : this.#kernelsWith(resident.storage);
    let key = this.#keys.get(spec);
    if (key === undefined) {
      key = keyOf(spec, resident === null ? inputs : [...inputs, resident.input]);
      this.#keys.set(spec, key);
    }
    let kernel = kernels.get(key);
    if (kernel === undefined) {
      kernel = this.#create(spec, resident);
      kernels.set(key, kernel);
    }
    const result: unknown = kernel(...inputs);
    // On a failure gpu.js carries on in mode cpu; that would hide which machine computed the numbers.
    const reason: unknown = Reflect.get(kernel.kernel, 'fallbackReason');
    if (typeof reason === 'string') throw new InvariantError(`gpu.js left mode ${this.mode}: ${reason}`);
    writeCells(result, spec, out);
  }

  /** Frees the kernels that a weight is part of. */
  release(storage: Storage): void {
    for (const kernel of this.#resident.get(storage)?.kernels.values() ?? []) kernel.destroy(false);
    this.#resident.delete(storage);
  }

  [Symbol.dispose](): void {
    for (const storage of this.#resident.keys()) this.release(storage);
    for (const kernel of this.#shared.values()) kernel.destroy(false);
    this.#shared.clear();
    const context: unknown = this.#gpu.context;
    if (this.mode === 'headlessgl' && context !== null) HeadlessGLKernel.destroyContext(context);
  }

  #kernelsWith(storage: Storage): Map<string, IKernelRunShortcut> {
    const held = this.#resident.get(storage);
    if (held !== undefined && held.version === storage.version) return held.kernels;
    this.release(storage);
    const kernels = new Map<string, IKernelRunShortcut>();
    this.#resident.set(storage, { version: storage.version, kernels });
    return kernels;
  }

  #create(spec: KernelSpec, resident: Resident | null): IKernelRunShortcut {
    const constants = resident === null ? spec.constants : { ...spec.constants, w: resident.input };
    return this.#gpu.createKernel(spec.source, {
      output: [...spec.output],
      constants,
      precision: 'single',
      // In mode cpu a pipeline kernel owns its result and overwrites it; elsewhere the result is read back.
      pipeline: this.mode === 'cpu',
      immutable: false,
    });
  }
}

/** gpu.js's typings say number[]; it takes and keeps typed arrays. dims: [x, y], x the fastest axis. */
export function inputOf(data: Float32Array, dims: readonly [number, number]): Input {
  return new Input(data as unknown as number[], [...dims]);
}

function keyOf(spec: KernelSpec, inputs: readonly Input[]): string {
  const sizes = inputs.map((input) => [...input.size].join('x'));
  const constants = Object.values(spec.constants);
  return [spec.source, ...spec.output, ...constants, ...sizes].join('|');
}

function writeCells(result: unknown, spec: KernelSpec, out: Float32Array): void {
  invariant(isCells(result), `gpu.js returned no rows for output [${spec.output.join(', ')}]`);
  const { lanes, width } = spec;
  let start = 0;
  for (const plane of result) {
    for (const row of plane) {
      if (row instanceof Float32Array) out.set(row, start);
      else {
        for (let i = 0; i < width; i++) {
          const cell = row[Math.floor(i / lanes)]!;
          out[start + i] = typeof cell === 'number' ? cell : cell[i % lanes]!;
        }
      }
      start += width;
    }
  }
}

function isCells(result: unknown): result is Cells {
  return Array.isArray(result) && Array.isArray(result[0]);
}
