import { describe, expect, it } from 'vitest';
import { attend } from '../../../../worker/kernels/ggml/attend.ts';
import { createGgmlKernels } from '../../../../worker/kernels/ggml/ggml.ts';
import { GraphRecorder } from '../../../../worker/kernels/ggml/graph.ts';
import type { Pointer } from '../../../../worker/kernels/ggml/functions.ts';
import { loadGgml } from '../../../../worker/kernels/ggml/library.ts';
import { GgmlTensor } from '../../../../worker/kernels/ggml/tensor.ts';
import type { Kernels, Tensor } from '../../../../worker/kernels/kernels.ts';
import { expectClose } from '../../../helpers/expect-close.ts';
import { randomHalves } from '../../../helpers/random.ts';
import { EXACT, GGML_TOLERANCES } from '../../../helpers/tolerances.ts';
import { expectedAttend, expectedSlice } from '../../../suites/kernels/expected.ts';
import { causalMask, evaluate, place, placeBits, randomValues } from '../../../suites/kernels/harness.ts';

/** [heads, tokens, positions, key columns, value columns]: on both sides of every choice that attend.ts makes. */
const SHAPES = [
  [1, 1, 1, 16, 16],
  [9, 1, 300, 192, 128],
  [9, 1, 300, 120, 72],
  [9, 12, 40, 17, 17],
  [63, 1, 65, 32, 16],
  [64, 1, 65, 32, 16],
  [3, 63, 70, 48, 48],
  [2, 64, 70, 48, 32],
  [2, 70, 96, 40, 24],
  [1, 130, 1, 32, 32],
] as const;

describe('attend of ggml', () => {
  for (const type of ['f32', 'f16'] as const) {
    for (const softcap of [0, 3]) {
      for (const shape of SHAPES) {
        it(`sums in f32 over ${type} rows, softcap ${softcap}, [${shape.join(', ')}]`, () => {
          using kernels = createGgmlKernels({ threads: 1, device: '' });
          const { actual, expected } = attendLatentRows(kernels, type, shape, softcap);
          expectClose(actual, expected, GGML_TOLERANCES.attend);
        });
      }
    }
  }

  it('gives zeros for a token that sees nothing, computed in steps or in tiles', () => {
    using kernels = createGgmlKernels({ threads: 1, device: '' });
    for (const tokens of [2, 65]) {
      const q = place(kernels, randomValues(1, [1, tokens, 32]));
      const rows = place(kernels, randomValues(2, [1, 40, 32]));
      const mask = causalMask(tokens, 40, 0).fill(-Infinity, 0, 40);
      const masked = place(kernels, { shape: [tokens, 40], data: mask });
      const options = { scale: 1, softcap: 0 };
      const actual = evaluate(kernels, (ops) => ops.attend(q, rows, rows, masked, options), [1, tokens, 32]);
      expectClose(actual.subarray(0, 32), new Float32Array(32), EXACT);
      expect(actual.subarray(32).every((value) => Number.isFinite(value) && value !== 0)).toBe(true);
    }
  });

  it('does without operations that a device lacks', () => {
    const { functions } = loadGgml();
    using kernels = createGgmlKernels({ threads: 1, device: '' });
    const device = functions.deviceByName('CPU');
    const backend = device === null ? null : functions.deviceInit(device, null);
    if (backend === null) return expect.fail('no CPU');
    const missing = new Set<string>();
    class PoorRecorder extends GraphRecorder {
      override supports(node: Pointer): boolean {
        const name = this.functions.opDescription(node);
        if (name !== 'OUT_PROD' && name !== 'FLASH_ATTN_EXT') return super.supports(node);
        missing.add(name);
        return false;
      }
    }
    const recorder = new PoorRecorder(functions, backend);
    const ggmlTensor = (tensor: Tensor) => (tensor instanceof GgmlTensor ? tensor : expect.fail('not of ggml'));
    const own = (values: Parameters<typeof place>[1]) => ggmlTensor(recorder.own(place(kernels, values)));
    const q = randomValues(3, [4, 70, 32]);
    const rows = randomValues(4, [2, 40, 32]);
    const mask = { shape: [70, 40], data: causalMask(70, 40, 5) };
    const low = own({ shape: [4096], data: new Float32Array(4096).fill(-1e30) });
    const keys = own(rows);
    const result = attend(recorder, {
      q: own(q),
      keys,
      values: keys,
      mask: own(mask),
      options: { scale: 0.3, softcap: 0 },
      constants: { ones: low, veryLow: low, rowNumbers: low },
    });
    const { graph, contexts, outputs } = recorder.finish([result]);
    if (graph === undefined) return expect.fail('nothing recorded');
    const allocator = functions.allocatorNew(functions.backendBufferType(backend));
    functions.allocatorAllocate(allocator, graph);
    functions.compute(backend, graph);
    const actual = new Float32Array(4 * 70 * 32);
    functions.tensorGet(outputs[0]!.pointer, actual, 0, actual.byteLength);
    expectClose(actual, expectedAttend(q, rows, rows, mask.data, 0.3, 0), GGML_TOLERANCES.attend);
    expect([...missing].sort()).toEqual(['FLASH_ATTN_EXT', 'OUT_PROD']);
    functions.allocatorFree(allocator);
    for (const context of contexts) functions.free(context);
    functions.backendFree(backend);
  });
});

function attendLatentRows(
  kernels: Kernels,
  type: 'f32' | 'f16',
  shape: (typeof SHAPES)[number],
  softcap: number,
): { actual: Float32Array; expected: number[] } {
  const [heads, tokens, positions, keyColumns, valueColumns] = shape;
  const q = randomValues(5, [heads, tokens, keyColumns]);
  const halves = randomHalves(6, positions * keyColumns);
  const rows = { shape: [1, positions, keyColumns], data: halves.values };
  const cache = type === 'f32' ? place(kernels, rows) : placeBits(kernels, 'f16', rows.shape, halves.bits);
  const mask = { shape: [tokens, positions], data: causalMask(tokens, positions, Math.floor(positions / 2)) };
  const placedQ = place(kernels, q);
  const placedMask = place(kernels, mask);
  const actual = evaluate(
    kernels,
    (ops) =>
      ops.attend(placedQ, cache, ops.slice(cache, 2, 0, valueColumns), placedMask, {
        scale: 0.2,
        softcap,
      }),
    [heads, tokens, valueColumns],
  );
  const values = expectedSlice(rows, 2, 0, valueColumns);
  return { actual, expected: [...expectedAttend(q, rows, values, mask.data, 0.2, softcap)] };
}
