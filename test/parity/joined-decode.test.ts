/**
 * Sequences that are decoded together, of which attention takes those in slots side by side at once, get the logits that
 * each gets alone: with heads and with latents, with windows, on every backend, also with a slot between them that rests.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { WorkerOptions } from '../../collective/setup.ts';
import type { Scheme } from '../../config/schemes.ts';
import { convertTinyNear } from '../helpers/convert-near.ts';
import { divergences } from '../helpers/divergence.ts';
import { tinyModel } from '../helpers/golden.ts';
import { startLocalRanks } from '../helpers/local-ranks.ts';
import { tinyVocab, writeTinyMla } from '../helpers/tiny-mla.ts';

let latent: Awaited<ReturnType<typeof writeTinyMla>>;
let root: string;
beforeAll(async () => {
  latent = await writeTinyMla({ latentDim: 64, ropeDim: 64 });
  root = mkdtempSync(join(tmpdir(), 'joined-'));
  await convertTinyNear(tinyModel('llama-gqa'), join(root, 'near'), { sinks: 3, window: 11 }, 4, 6);
});
afterAll(async () => {
  await latent[Symbol.asyncDispose]();
  rmSync(root, { recursive: true });
});

/** Tokens of the prompt in each slot, different enough for masks to differ, some beyond the first block of rows. */
const lengths = [5, 70, 33, 1, 68];
const tokenOf = (slot: number, position: number): number => (31 * slot + 7 * position + 3) % tinyVocab;

async function decoded(
  path: string,
  worldSize: number,
  options: Partial<WorkerOptions> & { scheme?: Scheme },
  together: boolean,
  slots: readonly number[],
): Promise<Float32Array> {
  await using ranks = await startLocalRanks(path, worldSize, { slots: lengths.length, ...options });
  const rows: Float32Array[] = [];
  for (const slot of slots) {
    const tokens = Array.from({ length: lengths[slot] ?? 0 }, (_, position) => tokenOf(slot, position));
    await ranks.step({ phase: 'prefill', sequences: [{ slot, start: 0, tokens }], want: { kind: 'none' } });
  }
  for (let step = 0; step < 3; step++) {
    const sequences = slots.map((slot) => {
      const start = (lengths[slot] ?? 0) + step;
      return { slot, start, tokens: [tokenOf(slot, start)] };
    });
    for (const part of together ? [sequences] : sequences.map((one) => [one]))
      rows.push(await ranks.logits({ phase: 'decode', sequences: part, want: { kind: 'last' } }));
  }
  return Float32Array.from(rows.flatMap((row) => [...row]));
}

describe.each([
  ['llama-gqa', 1, {}],
  ['llama-gqa', 2, {}],
  ['llama-odd-heads', 2, {}],
  ['gemma2', 1, {}], // sliding windows, capped scores
  ['kimi-k2-like', 1, {}],
  ['latent', 1, {}],
  ['latent', 2, { scheme: 'tpla' }],
  ['latent', 2, { scheme: 'gla' }],
  ['latent', 2, { scheme: 'dcp' }],
  ['latent', 3, { scheme: 'tpla-exact' }], // never joined
  ['near', 1, {}],
  ['near', 2, { scheme: 'mla' }],
  ['near', 3, { scheme: 'dcp' }], // the prompts leave no row on some ranks
  ['near', 2, { scheme: 'tpla' }],
  ['near', 2, { scheme: 'gla' }],
] as const)('%s on %i ranks %o', (name, worldSize, options) => {
  const pathOf = (): string =>
    name === 'latent' ? latent.path : name === 'near' ? join(root, 'near') : tinyModel(name);

  test.each([
    ['reference', 'f32'],
    ['ggml', 'f32'],
    ['ggml', 'f16'],
  ] as const)('%s, cache %s', async (backend, cacheType) => {
    for (const slots of [
      [0, 1, 2, 3, 4],
      [1, 2, 4],
    ]) {
      const set = { ...options, backend, cacheType };
      const alone = await decoded(pathOf(), worldSize, set, false, slots);
      const together = await decoded(pathOf(), worldSize, set, true, slots);
      const limit = cacheType === 'f16' ? 1e-6 : 1e-9;
      expect(Math.max(...divergences(together, alone, alone.length / slots.length / 3))).toBeLessThan(limit);
    }
  });
});

test.each(['mla', 'dcp'] as const)('single tokens beside a block, as after a fault, %s', async (scheme) => {
  const sequences = [9, 1, 1].map((length, slot) => ({
    slot,
    start: lengths[slot] ?? 0,
    tokens: Array.from({ length }, (_, i) => tokenOf(slot, (lengths[slot] ?? 0) + i)),
  }));
  const last = async (parts: readonly (typeof sequences)[]): Promise<Float32Array> => {
    await using ranks = await startLocalRanks(join(root, 'near'), 2, { scheme, slots: 3, backend: 'ggml' });
    for (const { slot, start } of sequences) {
      const tokens = Array.from({ length: start }, (_, position) => tokenOf(slot, position));
      await ranks.step({ phase: 'prefill', sequences: [{ slot, start: 0, tokens }], want: { kind: 'none' } });
    }
    const rows: number[] = [];
    for (const part of parts)
      rows.push(...(await ranks.logits({ phase: 'decode', sequences: part, want: { kind: 'last' } })));
    return Float32Array.from(rows);
  };
  const together = await last([sequences]);
  const alone = await last(sequences.map((one) => [one]));
  expect(Math.max(...divergences(together, alone, alone.length / 3))).toBeLessThan(1e-9);
});
