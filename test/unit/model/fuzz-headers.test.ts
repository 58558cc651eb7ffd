/**
 * Model files with flipped bytes, hostile numbers and cut ends: each opens or is refused by a ConfigError, quickly and
 * without taking memory for what a header claims. TPLA_FUZZ_CASES sets the number of cases (default 400 a format).
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { ConfigError } from '../../../config/errors.ts';
import { openGguf } from '../../../model/gguf.ts';
import { openSafetensors } from '../../../model/safetensors.ts';
import { golden, temporaryFolder } from './fixtures.ts';

const folder = temporaryFolder();
const cases = Number(process.env['TPLA_FUZZ_CASES'] ?? 400);

/** Lengths and offsets that break careless readers: 0, -1, 2^31, 2^53, 2^62 and neighbours. */
const hostile = [
  0n,
  1n,
  31n,
  255n,
  2n ** 31n - 1n,
  2n ** 32n - 1n,
  2n ** 53n + 1n,
  2n ** 62n,
  2n ** 63n,
  2n ** 64n - 1n,
];

const mutation = fc.oneof(
  fc.record({ kind: fc.constant('byte' as const), at: fc.nat(), value: fc.nat(255) }),
  fc.record({ kind: fc.constant('word' as const), at: fc.nat(), value: fc.constantFrom(...hostile) }),
  fc.record({ kind: fc.constant('cut' as const), at: fc.nat() }),
  fc.record({ kind: fc.constant('repeat' as const), at: fc.nat(), value: fc.integer({ min: 1, max: 40 }) }),
);
type Mutation = typeof mutation extends fc.Arbitrary<infer Value> ? Value : never;

/** Headers come first in both formats: most changes fall on the first `headerBytes`. */
function mutate(original: Uint8Array, mutations: readonly Mutation[], headerBytes: number): Uint8Array {
  let bytes = Uint8Array.from(original);
  for (const change of mutations) {
    if (bytes.length < 9) break;
    const at = change.at % Math.min(bytes.length - 8, headerBytes);
    switch (change.kind) {
      case 'byte':
        bytes[at] = change.value;
        break;
      case 'word':
        new DataView(bytes.buffer).setBigUint64(at, change.value, true);
        break;
      case 'cut':
        bytes = bytes.slice(0, change.at % bytes.length);
        break;
      case 'repeat':
        bytes = Uint8Array.from([...bytes.slice(0, at), ...bytes.slice(at, at + change.value), ...bytes.slice(at)]);
        break;
    }
  }
  return bytes;
}

it.each([
  { file: 'quants/Q4_0.gguf', open: openGguf },
  { file: 'quants/Q4_0.safetensors', open: openSafetensors },
])('damaged $file', { timeout: 60_000 + cases * 20 }, async ({ file, open }) => {
  const original = await readFile(join(golden, file));
  const path = join(folder(), `fuzzed.${file.split('.').pop()}`);
  const before = process.memoryUsage.rss();
  let peak = before;
  let refused = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(mutation, { minLength: 1, maxLength: 6 }), async (mutations) => {
      await writeFile(path, mutate(original, mutations, 1500));
      try {
        await using store = await open(path);
        for (const tensor of store.tensors.values())
          expect(tensor.offset + tensor.bytes).toBeLessThanOrEqual(store.fileBytes);
      } catch (error) {
        if (!(error instanceof ConfigError)) throw error;
        refused++;
      }
      peak = Math.max(peak, process.memoryUsage.rss());
    }),
    { numRuns: cases, seed: 20_240_601, endOnFailure: true },
  );
  // Otherwise the changes would not reach the header.
  expect(refused).toBeGreaterThan(cases / 2);
  expect(peak - before).toBeLessThan(200 * 2 ** 20);
});
