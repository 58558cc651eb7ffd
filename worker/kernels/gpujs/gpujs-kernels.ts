/**
 * The portable backend: everything a rank computes runs in gpu.js kernels, on a GPU through WebGL, in WebAssembly or in
 * plain JavaScript. Weights may be f32, f16 or bf16 (decoded when uploaded); quantised ones must be converted first.
 * Numbers live in JavaScript arrays. Mode cpu reads them in place; the others copy activations and cache rows at each
 * call and keep weights inside their kernels. Next: mode.ts (which mode), steps.ts (operations to kernels).
 */
import { InvariantError, invariant } from '../../../config/errors.ts';
import type { Kernels, Ops, ProgramBuilder, ProgramSet, Tensor, TensorType } from '../kernels.ts';
import { copyStep, gatherRowsStep, scatterRowsStep } from '../reference/ops.ts';
import type { Step } from '../reference/ops.ts';
import * as shapes from '../reference/shapes.ts';
import {
  allocateStorage,
  asStrided,
  elementCount,
  permuteView,
  readView,
  reshapeView,
  sliceView,
  Storage,
  StridedTensor,
  writeBytes,
} from '../reference/strided-tensor.ts';
import * as expertSteps from './expert-steps.ts';
import { KernelCache } from './kernel-cache.ts';
import type { GpuJsMode } from './kernel-cache.ts';
import { chooseMode } from './mode.ts';
import * as sources from './sources.ts';
import * as steps from './steps.ts';
import type { Recorder } from './recorder.ts';

const WEIGHT_TYPES: readonly TensorType[] = ['f32', 'f16', 'bf16'];

const MODE_NAMES: Readonly<Record<GpuJsMode, string>> = {
  headlessgl: 'WebGL outside a browser',
  webasm: 'WebAssembly, 1 thread',
  cpu: 'plain JavaScript, 1 thread',
};

/**
 * @param options.device '' for the fastest that works here, or gpu, webgl, wasm, cpu
 * @throws ConfigError if the named device does not exist here or computes wrong numbers
 */
export function createGpuJsKernels(options: { readonly device: string }): Kernels {
  const { mode, remark } = chooseMode(options.device, (candidate) => kernelsInMode(candidate, ''));
  return kernelsInMode(mode, remark);
}

function kernelsInMode(mode: GpuJsMode, remark: string): Kernels {
  const cache = new KernelCache(mode);
  const written = new WeakSet<Storage>();
  return {
    name: 'gpujs',
    device: `gpu.js in mode ${mode}: ${MODE_NAMES[mode]}${remark === '' ? '' : ` (${remark})`}`,
    supportsWeights: (type) => WEIGHT_TYPES.includes(type),
    repacks: () => false,
    allocate(type, shape) {
      if (type !== 'i32' && !WEIGHT_TYPES.includes(type)) {
        throw new InvariantError(`allocate: ${type} [${shape.join(', ')}], expected i32, ${WEIGHT_TYPES.join(', ')}`);
      }
      return new StridedTensor(allocateStorage(type, elementCount(shape)), shape);
    },
    release(tensors) {
      for (const { storage } of tensors.map(asStrided)) {
        cache.release(storage);
        storage.data = new Float32Array(0);
      }
    },
    sizeOf: (tensor) => allocatedStorage('sizeOf', tensor).data.byteLength,
    upload: (tensor, bytes, offsetBytes = 0) => writeBytes(allocatedStorage('upload', tensor), bytes, offsetBytes),
    download: (tensor, out) => readView(asStrided(tensor), out),
    compile: (builders) => compile(cache, written, builders),
    [Symbol.dispose]: () => cache[Symbol.dispose](),
  };
}

/** Each program's results follow each other in one array that all programs of the set share. */
function compile(cache: KernelCache, written: WeakSet<Storage>, builders: readonly ProgramBuilder[]): ProgramSet {
  const programs = builders.map((builder) => {
    const recorded: Step[] = [];
    const results: Storage[] = [];
    const recorder: Recorder = {
      cache,
      written,
      push: (step) => recorded.push(step),
      result(shape) {
        const storage = new Storage('f32', elementCount(shape), false);
        results.push(storage);
        return new StridedTensor(storage, shape);
      },
    };
    const outputs = builder(recordOps(recorder));
    return { recorded, results, outputs };
  });
  const sizes = programs.map(({ results }) => results.reduce((sum, { length }) => sum + length, 0));
  const scratch = new Float32Array(Math.max(0, ...sizes));
  for (const { results } of programs) {
    let offset = 0;
    for (const storage of results) {
      storage.data = scratch.subarray(offset, offset + storage.length);
      offset += storage.length;
    }
  }
  return {
    outputs: programs.map(({ outputs }) => outputs),
    run(index) {
      const program = programs[index];
      invariant(program !== undefined, `run: program ${index} of ${programs.length}`);
      for (const step of program.recorded) step();
    },
    [Symbol.dispose]: () => undefined,
  };
}

function recordOps(recorder: Recorder): Ops {
  /** Allocates the result, records the steps that fill it and returns it. */
  const record = (shape: readonly number[], addSteps: (out: StridedTensor) => void): Tensor => {
    const out = recorder.result(shape);
    addSteps(out);
    return out;
  };
  const elementwise = (
    shape: readonly number[],
    source: string,
    inputs: readonly Tensor[],
    constants: Readonly<Record<string, number>>,
  ): Tensor => record(shape, (out) => steps.elementwise(recorder, source, inputs.map(asStrided), constants, out));
  const s = asStrided;
  return {
    matmul: (weight, x) => record(shapes.matmulShape(weight, x), (out) => steps.matmul(recorder, s(weight), s(x), out)),
    expertMatmul: (weights, x, ids) =>
      record(shapes.expertMatmulShape(weights, x, ids), (out) =>
        expertSteps.expertMatmul(recorder, s(weights), s(x), s(ids), out),
      ),
    weightedSum: (x, shares) =>
      record(shapes.weightedSumShape(x, shares), (out) => expertSteps.weightedSum(recorder, s(x), s(shares), out)),
    add: (a, b) => record(shapes.broadcastShape('add', a, b), (out) => steps.binary(recorder, '+', s(a), s(b), out)),
    multiply: (a, b) =>
      record(shapes.broadcastShape('multiply', a, b), (out) => steps.binary(recorder, '*', s(a), s(b), out)),
    scale: (x, factor) => elementwise(shapes.broadcastShape('scale', x, x), sources.scaleSource(), [x], { factor }),
    softcap: (x, softcap) =>
      elementwise(shapes.broadcastShape('softcap', x, x), sources.softcapSource(), [x], { softcap }),
    gated: (gate, up, activation) =>
      elementwise(shapes.gatedShape(gate, up), sources.gatedSource(activation), [gate, up], {}),
    rmsNorm(x, eps) {
      shapes.expectType('rmsNorm: x', x, ['f32']);
      return record(x.shape, (out) => steps.rmsNorm(recorder, s(x), eps, out));
    },
    rope: (x, positions, frequencies, options) =>
      record(shapes.ropeShape(x, positions, frequencies), (out) =>
        steps.rope(recorder, s(x), s(positions), s(frequencies), options, out),
      ),
    attend: (q, keys, values, mask, options) =>
      record(shapes.attendShape(q, keys, values, mask), (out) =>
        steps.attend(recorder, s(q), s(keys), s(values), s(mask), options, out),
      ),
    attendPartial(q, keys, values, mask, options) {
      const shape = shapes.attendShape(q, keys, values, mask);
      const logSumExp = recorder.result(shape.slice(0, 2));
      const out = record(shape, (result) =>
        steps.attend(recorder, s(q), s(keys), s(values), s(mask), options, result, logSumExp),
      );
      return { out, logSumExp };
    },
    attendScores: (scores, values, mask, options) =>
      record(shapes.attendScoresShape(scores, values, mask), (out) =>
        steps.attendScores(recorder, s(scores), s(values), s(mask), options, out),
      ),
    softmax: (x, mask, scale) =>
      record(shapes.softmaxShape(x, mask), (out) =>
        steps.maskedSoftmax(recorder, s(x), s(mask), { scale, softcap: 0 }, out),
      ),
    ...movingOps(recorder, record),
  };
}

/** Operations that compute nothing: plain copies, and views, which cost nothing. */
function movingOps(
  recorder: Recorder,
  record: (shape: readonly number[], addSteps: (out: StridedTensor) => void) => Tensor,
): Pick<Ops, 'scatterRows' | 'gatherRows' | 'copyTo' | 'reshape' | 'slice' | 'permute' | 'contiguous' | 'concat'> {
  const s = asStrided;
  return {
    scatterRows(target, rows, indices) {
      shapes.checkScatter(target, rows, indices);
      recorder.written.add(allocatedStorage('scatterRows', target));
      recorder.push(scatterRowsStep(s(target), s(rows), s(indices)));
    },
    gatherRows: (table, indices) =>
      record(shapes.gatherShape(table, indices), (out) => recorder.push(gatherRowsStep(s(table), s(indices), out))),
    copyTo(target, x) {
      shapes.checkCopy(target, x);
      recorder.written.add(allocatedStorage('copyTo', target));
      recorder.push(copyStep(s(x), s(target)));
    },
    reshape: (x, shape) => reshapeView(s(x), shape),
    slice: (x, axis, start, length) => sliceView(s(x), axis, start, length),
    permute: (x, order) => permuteView(s(x), order),
    contiguous(x) {
      shapes.expectType('contiguous: x', x, WEIGHT_TYPES);
      return record(x.shape, (out) => recorder.push(copyStep(s(x), out)));
    },
    concat: (parts, axis) =>
      record(shapes.concatShape(parts, axis), (out) => {
        let start = 0;
        for (const part of parts) {
          const size = part.shape[axis]!;
          recorder.push(copyStep(s(part), sliceView(out, axis, start, size)));
          start += size;
        }
      }),
  };
}

function allocatedStorage(name: string, tensor: Tensor): Storage {
  const storage = asStrided(tensor).storage;
  invariant(
    storage.allocated,
    `${name}: [${tensor.shape.join(', ')}] is the result of an operation, expected an allocated tensor`,
  );
  return storage;
}
