/** What the parts of the Kernels suite share: the backend under test, named skips, placing inputs and running a program. */
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { Kernels, Ops, Tensor } from '../../../worker/kernels/kernels.ts';
import { randomArray } from '../../helpers/random.ts';
import type { KernelTolerances } from '../../helpers/tolerances.ts';
import type { Values } from './expected.ts';

export interface KernelSuiteOptions {
  readonly tolerances: KernelTolerances;
  /** Tests that this backend does not pass, by name, with the reason. A name that no test has fails the suite. */
  readonly skip?: readonly { readonly reason: string; readonly tests: readonly string[] }[];
}

export interface KernelSuite {
  readonly tolerances: KernelTolerances;
  readonly test: (name: string, body: (kernels: Kernels) => void) => void;
}

export function openKernelSuite(create: () => Kernels, options: KernelSuiteOptions): KernelSuite {
  let kernels: Kernels | undefined;
  const seen = new Set<string>();
  const reasons = new Map((options.skip ?? []).flatMap(({ reason, tests }) => tests.map((name) => [name, reason])));
  const current = (): Kernels => kernels ?? expect.fail('the backend was not created');
  beforeAll(() => {
    kernels = create();
  });
  afterAll(() => {
    kernels?.[Symbol.dispose]();
    expect([...reasons.keys()].filter((name) => !seen.has(name))).toEqual([]);
  });
  return {
    tolerances: options.tolerances,
    test(name, body) {
      seen.add(name);
      const reason = reasons.get(name);
      if (reason === undefined) it(name, () => body(current()));
      else it.skip(`${name} (${reason})`, () => undefined);
    },
  };
}

export function randomValues(
  seed: number,
  shape: readonly number[],
  low = -1,
  high = 1,
): Values & { data: Float32Array } {
  return { shape, data: randomArray(seed, size(shape), low, high) };
}

export function size(shape: readonly number[]): number {
  return shape.reduce((product, length) => product * length, 1);
}

export function place(kernels: Kernels, values: Values): Tensor {
  const tensor = kernels.allocate('f32', values.shape);
  replace(kernels, tensor, values.data);
  return tensor;
}

export function replace(kernels: Kernels, tensor: Tensor, data: ArrayLike<number>): void {
  kernels.upload(tensor, bytesOf(Float32Array.from(data)));
}

export function placeIndices(kernels: Kernels, indices: readonly number[]): Tensor {
  const tensor = kernels.allocate('i32', [indices.length]);
  kernels.upload(tensor, bytesOf(Int32Array.from(indices)));
  return tensor;
}

export function placeBits(kernels: Kernels, type: 'f16' | 'bf16', shape: readonly number[], bits: Uint16Array): Tensor {
  const tensor = kernels.allocate(type, shape);
  kernels.upload(tensor, bytesOf(bits));
  return tensor;
}

export function bytesOf(array: Float32Array | Int32Array | Uint16Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

export function read(kernels: Kernels, tensor: Tensor): Float32Array {
  const out = new Float32Array(size(tensor.shape)).fill(NaN);
  kernels.download(tensor, out);
  return out;
}

/** Compiles one program, runs it once and reads its only output. */
export function evaluate(kernels: Kernels, build: (ops: Ops) => Tensor, shape: readonly number[]): Float32Array {
  using programs = kernels.compile([(ops) => [build(ops)]]);
  programs.run(0);
  const output = programs.outputs[0]![0]!;
  expect(output.type).toBe('f32');
  expect(output.shape).toEqual(shape);
  return read(kernels, output);
}

/** Row t of a causal mask sees positions up to start + t; the rest is -Infinity. [tokens, length] */
export function causalMask(tokens: number, length: number, start: number): Float32Array {
  return Float32Array.from({ length: tokens * length }, (_, index) =>
    index % length <= start + Math.floor(index / length) ? 0 : -Infinity,
  );
}
