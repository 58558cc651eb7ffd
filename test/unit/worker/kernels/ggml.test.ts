import { describe, expect, it } from 'vitest';
import { createGgmlKernels } from '../../../../worker/kernels/ggml/ggml.ts';
import type { Kernels } from '../../../../worker/kernels/kernels.ts';
import { expectClose } from '../../../helpers/expect-close.ts';
import { EXACT, GGML_TOLERANCES } from '../../../helpers/tolerances.ts';
import { describeKernels } from '../../../suites/kernels.ts';
import { expectedMatmul } from '../../../suites/kernels/expected.ts';
import { bytesOf, evaluate, place, placeIndices, randomValues, read } from '../../../suites/kernels/harness.ts';

const create = (): Kernels => createGgmlKernels({ threads: 1, device: '' });

describeKernels('ggml', create, { tolerances: GGML_TOLERANCES });

describe('the ggml backend', () => {
  it('names the CPU, the instruction set and the threads', () => {
    using kernels = createGgmlKernels({ threads: 2, device: 'CPU' });
    expect(kernels.name).toBe('ggml');
    expect(kernels.device).toMatch(/, [\w.]+, 2 threads$/);
  });

  it('refuses a device that ggml does not know, and lists those it knows', () => {
    expect(() => createGgmlKernels({ threads: 1, device: 'CUDA9' })).toThrow(/^ggml: no device CUDA9; known: .*CPU \(/);
    expect(() => createGgmlKernels({ threads: 0, device: '' })).toThrow('ggml: 0 threads: must be a positive integer');
  });

  it('gives the same result with two threads', () => {
    using alone = create();
    using shared = createGgmlKernels({ threads: 2, device: '' });
    const weight = randomValues(1, [37, 64]);
    const x = randomValues(2, [3, 64]);
    const product = (kernels: Kernels) =>
      evaluate(kernels, (ops) => ops.matmul(place(kernels, weight), place(kernels, x)), [3, 37]);
    expectClose(product(shared), product(alone), EXACT);
  });

  it('keeps its scratch memory in place when a later program of the set needs more', () => {
    using kernels = create();
    const sizes = [3, 300, 70];
    const weight = randomValues(3, [64, 64]);
    const w = place(kernels, weight);
    const inputs = sizes.map((tokens) => randomValues(tokens, [tokens, 64]));
    const placed = inputs.map((x) => place(kernels, x));
    using programs = kernels.compile(placed.map((x) => (ops) => [ops.scale(ops.matmul(w, x), 2)]));
    for (const index of [1, 0, 2, 0, 1]) {
      programs.run(index);
      const x = inputs[index]!;
      const expected = expectedMatmul({ shape: [1, 64, 64], data: weight.data }, { ...x, shape: [1, ...x.shape] });
      const twice = expected.map((value) => 2 * value);
      expectClose(read(kernels, programs.outputs[index]![0]!), twice, GGML_TOLERANCES.matmul);
    }
  });

  it('keeps an output that is a view and that later operations read', () => {
    using kernels = create();
    const x = randomValues(4, [6, 32]);
    const tensor = place(kernels, x);
    using programs = kernels.compile([
      (ops) => {
        const doubled = ops.reshape(ops.scale(tensor, 2), [3, 64]);
        const flat = ops.reshape(doubled, [192]);
        const later = ops.scale(flat, 3);
        return [flat, ...[1, 2, 3, 4].map((factor) => ops.scale(tensor, factor)), later];
      },
    ]);
    programs.run(0);
    expectClose(
      read(kernels, programs.outputs[0]![0]!),
      x.data.map((value) => 2 * value),
      EXACT,
    );
  });

  it('reads before a scatter the old rows, after it the new ones', () => {
    using kernels = create();
    const before = randomValues(5, [4, 32]);
    const after = randomValues(6, [1, 32]);
    const cache = place(kernels, before);
    const row = place(kernels, after);
    const at = placeIndices(kernels, [2]);
    using programs = kernels.compile([
      (ops) => {
        const view = ops.slice(cache, 0, 2, 1);
        const old = ops.scale(view, 1);
        ops.scatterRows(cache, row, at);
        return [old, ops.scale(view, 1)];
      },
    ]);
    programs.run(0);
    const [old, fresh] = programs.outputs[0]!;
    expectClose(read(kernels, old!), before.data.slice(64, 96), EXACT);
    expectClose(read(kernels, fresh!), after.data, EXACT);
  });

  it('frees what it allocates and compiles', () => {
    using kernels = create();
    const round = () => {
      const weight = kernels.allocate('f32', [512, 1024]); // 2 MiB
      const x = kernels.allocate('f32', [256, 1024]);
      using programs = kernels.compile([(ops) => [ops.matmul(weight, x)], (ops) => [ops.scale(x, 2)]]);
      programs.run(1);
      kernels.release([weight, x]);
    };
    for (let i = 0; i < 5; i++) round();
    const start = process.memoryUsage.rss();
    for (let i = 0; i < 100; i++) round();
    expect(process.memoryUsage.rss() - start).toBeLessThan(100 * 2 ** 20); // leaking would cost 350 MiB
  });

  it('refuses released, foreign and unfitting arguments before ggml sees them', () => {
    using kernels = create();
    const gone = kernels.allocate('f32', [2, 3]);
    kernels.release([gone]);
    const kept = kernels.allocate('f32', [2, 3]);
    const f16 = kernels.allocate('f16', [2, 3]);
    expect(() => kernels.release([gone])).toThrow('release of f32 [2, 3], which this backend has not allocated');
    expect(() => kernels.compile([(ops) => [ops.scale(gone, 2)]])).toThrow('f32 [2, 3] has been released');
    expect(() => kernels.download({ type: 'f32', shape: [1] }, new Float32Array(1))).toThrow('another backend');
    expect(() => kernels.download(f16, new Float32Array(6))).toThrow('download of 6 floats from f16 [2, 3]');
    expect(() => kernels.upload(kept, new Uint8Array(8), 20)).toThrow('upload of 8 bytes at 20 to f32 [2, 3]');
    expect(() => kernels.allocate('q4_K', [2, 128])).toThrow('the last axis must be a multiple of 256');
    expect(() => kernels.compile([(ops) => [ops.add(kept, f16)]])).toThrow('add: b is f16 [2, 3], expected f32');
    const stray = { tensor: kept };
    using programs = kernels.compile([(ops) => [(stray.tensor = ops.scale(kept, 2))]]);
    expect(() => kernels.compile([(ops) => [ops.scale(stray.tensor, 2)]])).toThrow('a result of another program');
    expect(() => programs.run(1)).toThrow('run of program 1 of 1');
    programs[Symbol.dispose]();
    expect(() => programs.run(0)).toThrow('run of program 0 after disposal');
  });

  it('rotates by any frequencies, none included, to float32 of the angle up to position 8192', () => {
    using kernels = create();
    const positions = [0, 63, 1024, 8191];
    const frequencies = Float32Array.from({ length: 32 }, (_, i) => (i === 31 ? 0 : 500000 ** (-i / 32)));
    const x = randomValues(7, [4, 1, 64]);
    const actual = evaluate(
      kernels,
      (ops) => {
        const table = place(kernels, { shape: [32], data: frequencies });
        return ops.rope(place(kernels, x), placeIndices(kernels, positions), table, {
          interleaved: true,
          attentionFactor: 1,
        });
      },
      [4, 1, 64],
    );
    positions.forEach((position, t) => {
      const expected = Array.from({ length: 64 }, (_, i) => {
        const pair = i - (i % 2);
        const angle = position * frequencies[pair / 2]!;
        const [a, b] = [x.data[t * 64 + pair]!, x.data[t * 64 + pair + 1]!];
        return i % 2 === 0 ? a * Math.cos(angle) - b * Math.sin(angle) : a * Math.sin(angle) + b * Math.cos(angle);
      });
      // The reciprocal, the division and the sine each round once: 2^-24 of the angle each.
      const tolerance = { absolute: 1e-6 + position * 2 ** -22, relative: 0 };
      expectClose(actual.subarray(t * 64, t * 64 + 64), expected, tolerance);
      expectClose(actual.subarray(t * 64 + 62, t * 64 + 64), x.data.subarray(t * 64 + 62, t * 64 + 64), EXACT);
    });
  });

  it('writes q8_0 rows', () => {
    using kernels = create();
    const cache = kernels.allocate('q8_0', [5, 64]);
    const rows = randomValues(8, [2, 64]);
    const placed = place(kernels, rows);
    const at = placeIndices(kernels, [3, 1]);
    const all = placeIndices(kernels, [0, 1, 2, 3, 4]);
    using programs = kernels.compile([
      (ops) => {
        ops.scatterRows(cache, placed, at);
        return [ops.gatherRows(cache, all)];
      },
    ]);
    programs.run(0);
    const zeros = new Array<number>(64).fill(0);
    const expected = [...zeros, ...rows.data.subarray(64), ...zeros, ...rows.data.subarray(0, 64), ...zeros];
    expectClose(read(kernels, programs.outputs[0]![0]!), expected, { absolute: 0.5 / 127 + 1e-3, relative: 0 });
  });

  it('uploads part of a tensor', () => {
    using kernels = create();
    const tensor = kernels.allocate('f32', [2, 3]);
    kernels.upload(tensor, bytesOf(Float32Array.of(7, 8)), 12);
    expectClose(read(kernels, tensor), [0, 0, 0, 7, 8, 0], EXACT);
  });
});
