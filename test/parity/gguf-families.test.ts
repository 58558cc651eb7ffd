/** The tiny checkpoints as GGUF files: the same logits as from the original folder, sharded. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openCheckpoint } from '../../model/open.ts';
import { expectClose } from '../helpers/expect-close.ts';
import { writeGgufFromHub, type GgufOptions } from '../helpers/gguf-from-hub.ts';
import { readGolden, tinyModel } from '../helpers/golden.ts';
import { startLocalRanks } from '../helpers/local-ranks.ts';
import { GOLDEN_LOGITS } from '../helpers/tolerances.ts';

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'tpla-gguf-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

test.each([
  ['llama-odd-heads', { architecture: 'llama' }],
  ['gemma2', { architecture: 'gemma2' }],
  ['qwen3-moe', { architecture: 'qwen3moe' }],
  ['kimi-k2-like', { architecture: 'deepseek2' }],
  ['kimi-k2-like', { architecture: 'deepseek2', splitLatentUp: true }],
] satisfies [string, GgufOptions][])('%s as %j', async (name, options) => {
  const path = join(folder, `${JSON.stringify([name, options]).replaceAll(/\W/g, '-')}.gguf`);
  await writeGgufFromHub(tinyModel(name), path, options);
  const golden = readGolden(name);
  const native = options.architecture === 'deepseek2' ? ({ scheme: 'mla' } as const) : {};
  await using ranks = await startLocalRanks(path, 3, { backend: 'ggml', ...native });
  const logits = await ranks.logits({
    phase: 'prefill',
    sequences: [{ slot: 0, start: 0, tokens: golden.inputIds }],
    want: { kind: 'all' },
  });
  expectClose(logits, golden.logits, GOLDEN_LOGITS);
});

test('a split latent projection reads the same for any range', async () => {
  const path = join(folder, 'ranges.gguf');
  await writeGgufFromHub(tinyModel('kimi-k2-like'), path, { architecture: 'deepseek2', splitLatentUp: true });
  await using split = await openCheckpoint(path);
  const whole = join(folder, 'whole.gguf');
  await writeGgufFromHub(tinyModel('kimi-k2-like'), whole, { architecture: 'deepseek2' });
  await using joint = await openCheckpoint(whole);
  expect(split.shapeOf('latentUp', 1)).toEqual(joint.shapeOf('latentUp', 1));
  for (const rows of [
    { start: 0, end: 64 },
    { start: 10, end: 50 },
    { start: 17, end: 18 },
    { start: 40, end: 40 },
  ]) {
    const cols = { start: 5, end: 60 };
    const [actual, expected] = [
      await split.read('latentUp', 1, rows, cols),
      await joint.read('latentUp', 1, rows, cols),
    ];
    expect(Buffer.compare(actual.bytes, expected.bytes)).toBe(0);
  }
});
