/**
 * The definition of the kernels: plain JavaScript, float64 sums, float32 results. Slow on purpose; tests compare the
 * other backends with it and small models run on it. Takes f32, f16 and bf16 weights, no quantised ones.
 * Next: reference/ops.ts (the loops), reference/shapes.ts (what each operation accepts).
 */
import { InvariantError, invariant } from '../../config/errors.ts';
import type { Kernels, Ops, ProgramBuilder, ProgramSet, Tensor, TensorType } from './kernels.ts';
import {
  activate,
  attendScoresStep,
  attendStep,
  capped,
  copyStep,
  elementwiseStep,
  gatherRowsStep,
  matmulStep,
  rmsNormStep,
  ropeStep,
  scatterRowsStep,
  softmaxStep,
} from './reference/ops.ts';
import type { Step } from './reference/ops.ts';
import { expertMatmulStep, weightedSumStep } from './reference/expert-ops.ts';
import * as shapes from './reference/shapes.ts';
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
} from './reference/strided-tensor.ts';

const WEIGHT_TYPES: readonly TensorType[] = ['f32', 'f16', 'bf16'];

/** f16 and bf16 are decoded when uploaded; a write into an f16 tensor rounds to the nearest f16, ties to even. */
export function createReferenceKernels(): Kernels {
  return {
    name: 'reference',
    device: 'plain JavaScript, float64 sums',
    supportsWeights: (type) => WEIGHT_TYPES.includes(type),
    repacks: () => false,
    allocate(type, shape) {
      if (type !== 'i32' && !WEIGHT_TYPES.includes(type)) {
        throw new InvariantError(`allocate: ${type} [${shape.join(', ')}], expected i32, ${WEIGHT_TYPES.join(', ')}`);
      }
      return new StridedTensor(allocateStorage(type, elementCount(shape)), shape);
    },
    release(tensors) {
      for (const tensor of tensors) asStrided(tensor).storage.data = new Float32Array(0);
    },
    sizeOf: (tensor) => allocatedStorage('sizeOf', tensor).data.byteLength,
    upload: (tensor, bytes, offsetBytes = 0) => writeBytes(allocatedStorage('upload', tensor), bytes, offsetBytes),
    download: (tensor, out) => readView(asStrided(tensor), out),
    compile,
    [Symbol.dispose]: () => undefined,
  };
}

/** Each program's results follow each other in one array that all programs of the set share. */
function compile(builders: readonly ProgramBuilder[]): ProgramSet {
  const programs = builders.map((builder) => {
    const steps: Step[] = [];
    const results: Storage[] = [];
    const outputs = builder(recordOps(steps, results));
    return { steps, results, outputs };
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
      for (const step of program.steps) step();
    },
    [Symbol.dispose]: () => undefined,
  };
}

function recordOps(steps: Step[], results: Storage[]): Ops {
  const record = (shape: readonly number[], makeStep: (out: StridedTensor) => Step): Tensor => {
    const storage = new Storage('f32', elementCount(shape), false);
    results.push(storage);
    const out = new StridedTensor(storage, shape);
    steps.push(makeStep(out));
    return out;
  };
  const elementwise = (
    shape: readonly number[],
    a: Tensor,
    b: Tensor,
    compute: (a: number, b: number) => number,
  ): Tensor => record(shape, (out) => elementwiseStep(asStrided(a), asStrided(b), out, compute));
  return {
    matmul: (weight, x) =>
      record(shapes.matmulShape(weight, x), (out) => matmulStep(asStrided(weight), asStrided(x), out)),
    expertMatmul: (weights, x, ids) =>
      record(shapes.expertMatmulShape(weights, x, ids), (out) =>
        expertMatmulStep(asStrided(weights), asStrided(x), asStrided(ids), out),
      ),
    weightedSum: (x, shares) =>
      record(shapes.weightedSumShape(x, shares), (out) => weightedSumStep(asStrided(x), asStrided(shares), out)),
    add: (a, b) => elementwise(shapes.broadcastShape('add', a, b), a, b, (left, right) => left + right),
    multiply: (a, b) => elementwise(shapes.broadcastShape('multiply', a, b), a, b, (left, right) => left * right),
    scale: (x, factor) => elementwise(shapes.broadcastShape('scale', x, x), x, x, (value) => value * factor),
    rmsNorm(x, eps) {
      shapes.expectType('rmsNorm: x', x, ['f32']);
      return record(x.shape, (out) => rmsNormStep(asStrided(x), eps, out));
    },
    rope: (x, positions, frequencies, options) =>
      record(shapes.ropeShape(x, positions, frequencies), (out) =>
        ropeStep(asStrided(x), asStrided(positions), asStrided(frequencies), options, out),
      ),
    gated: (gate, up, activation) =>
      elementwise(shapes.gatedShape(gate, up), gate, up, (g, u) => activate(activation, g) * u),
    softcap: (x, softcap) =>
      elementwise(shapes.broadcastShape('softcap', x, x), x, x, (value) => capped(value, softcap)),
    attend: (q, keys, values, mask, options) =>
      record(shapes.attendShape(q, keys, values, mask), (out) =>
        attendStep(asStrided(q), asStrided(keys), asStrided(values), asStrided(mask), options, out),
      ),
    attendPartial(q, keys, values, mask, options) {
      const shape = shapes.attendShape(q, keys, values, mask);
      // One step fills both results; the second is recorded with a step that does nothing.
      const logSumExp = record(shape.slice(0, 2), () => () => undefined);
      const out = record(shape, (result) =>
        attendStep(
          asStrided(q),
          asStrided(keys),
          asStrided(values),
          asStrided(mask),
          options,
          result,
          asStrided(logSumExp),
        ),
      );
      return { out, logSumExp };
    },
    attendScores: (scores, values, mask, options) =>
      record(shapes.attendScoresShape(scores, values, mask), (out) =>
        attendScoresStep(asStrided(scores), asStrided(values), asStrided(mask), options, out),
      ),
    softmax: (x, mask, scale) =>
      record(shapes.softmaxShape(x, mask), (out) => softmaxStep(asStrided(x), asStrided(mask), scale, out)),
    scatterRows(target, rows, indices) {
      shapes.checkScatter(target, rows, indices);
      allocatedStorage('scatterRows', target);
      steps.push(scatterRowsStep(asStrided(target), asStrided(rows), asStrided(indices)));
    },
    gatherRows: (table, indices) =>
      record(shapes.gatherShape(table, indices), (out) => gatherRowsStep(asStrided(table), asStrided(indices), out)),
    copyTo(target, x) {
      shapes.checkCopy(target, x);
      allocatedStorage('copyTo', target);
      steps.push(copyStep(asStrided(x), asStrided(target)));
    },
    reshape: (x, shape) => reshapeView(asStrided(x), shape),
    slice: (x, axis, start, length) => sliceView(asStrided(x), axis, start, length),
    permute: (x, order) => permuteView(asStrided(x), order),
    contiguous(x) {
      shapes.expectType('contiguous: x', x, WEIGHT_TYPES);
      return record(x.shape, (out) => copyStep(asStrided(x), out));
    },
    concat: (parts, axis) => concat(record, parts, axis),
  };
}

function concat(
  record: (shape: readonly number[], makeStep: (out: StridedTensor) => Step) => Tensor,
  parts: readonly Tensor[],
  axis: number,
): Tensor {
  return record(shapes.concatShape(parts, axis), (out) => {
    let start = 0;
    const copies = parts.map((part) => {
      const size = part.shape[axis]!;
      const target = sliceView(out, axis, start, size);
      start += size;
      return copyStep(asStrided(part), target);
    });
    return () => copies.forEach((copy) => copy());
  });
}

function allocatedStorage(name: string, tensor: Tensor): Storage {
  const storage = asStrided(tensor).storage;
  invariant(
    storage.allocated,
    `${name}: [${tensor.shape.join(', ')}] is the result of an operation, expected an allocated tensor`,
  );
  return storage;
}
