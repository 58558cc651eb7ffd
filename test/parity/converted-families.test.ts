/**
 * Every family that converts, at full size: windows, caps, norms behind sublayers, scaled embeddings and experts do in
 * a latent layer what they do in the source's, in every scheme. The prompt is longer than the windows of the models.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openCheckpoint } from '../../model/open.ts';
import { checkPortable } from '../../model/transmla/portable.ts';
import { convertTinyBothWays, convertTinyExactly } from '../helpers/convert-tiny.ts';
import { expectClose } from '../helpers/expect-close.ts';
import { readGolden, tinyCheckpoints, tinyModel } from '../helpers/golden.ts';
import { startLocalRanks, type LocalRanks } from '../helpers/local-ranks.ts';
import { CONVERTED_EXACTLY } from '../helpers/tolerances.ts';

/** Refused by name: norms between projection and rope. MLA already: nothing to convert. */
const unconverted = /^(qwen3|deepseek|kimi)/;
const families = tinyCheckpoints().filter((name) => !unconverted.test(name));
const layouts = [
  { scheme: 'mla', worldSize: 1 },
  { scheme: 'mla', worldSize: 2 },
  { scheme: 'tpla-exact', worldSize: 2 },
  { scheme: 'dcp', worldSize: 2 },
] as const;

let root: string;
beforeAll(() => (root = mkdtempSync(join(tmpdir(), 'converted-'))));
afterAll(() => rmSync(root, { recursive: true }));

type Golden = ReturnType<typeof readGolden>;

async function expectGolden(ranks: LocalRanks, golden: Golden): Promise<void> {
  const vocab = golden.greedyLogits.length / golden.greedyIds.length;
  const prompt = await ranks.logits({
    phase: 'prefill',
    sequences: [{ slot: 0, start: 0, tokens: golden.inputIds }],
    want: { kind: 'all' },
  });
  expectClose(prompt, golden.logits, CONVERTED_EXACTLY);
  for (const [i, token] of golden.greedyIds.slice(0, -1).entries()) {
    const next = await ranks.logits({
      phase: 'decode',
      sequences: [{ slot: 0, start: golden.inputIds.length + i, tokens: [token] }],
      want: { kind: 'last' },
    });
    expectClose(next, golden.greedyLogits.subarray((i + 1) * vocab, (i + 2) * vocab), CONVERTED_EXACTLY);
  }
}

describe.each(families)('%s', (name) => {
  const golden = readGolden(name);
  const folder = () => join(root, name);
  beforeAll(() => convertTinyExactly(name, folder()));

  test.each(layouts)('$scheme on $worldSize ranks', async ({ scheme, worldSize }) => {
    await using ranks = await startLocalRanks(folder(), worldSize, { backend: 'ggml', scheme });
    await expectGolden(ranks, golden);
  });

  test('tpla: exact prefill, and exact decode where all tokens are scored exactly', async () => {
    const exactTokens = { sinks: 0, window: 64 };
    await using ranks = await startLocalRanks(folder(), 2, { backend: 'ggml', scheme: 'tpla', exactTokens });
    await expectGolden(ranks, golden);
  });
});

test.each(['gemma2', 'mixtral', 'mistral'])('%s keeps its features and what was not converted', async (name) => {
  await using source = await openCheckpoint(tinyModel(name));
  await using converted = await openCheckpoint(join(root, name));
  const { slidingWindows, experts, postNorms, embeddingScale, logitSoftcap, feedForward, attention } = source.config;
  expect(converted.config).toMatchObject({
    slidingWindows,
    experts,
    postNorms,
    embeddingScale,
    logitSoftcap,
    feedForward,
    attention: { scoreSoftcap: attention.scoreSoftcap },
  });
  for (const role of ['embedding', 'attentionNorm', 'expertDown', 'router', 'feedForwardPostNorm', 'down'] as const) {
    const layer = role === 'embedding' ? undefined : 1;
    if (source.shapeOf(role, layer) === undefined) expect(converted.shapeOf(role, layer)).toBeUndefined();
    else expect(await converted.read(role, layer)).toEqual(await source.read(role, layer));
  }
});

test('the portable form computes the same, as a native DeepSeek-V3 checkpoint', async () => {
  const name = 'llama-gqa';
  const folder = join(root, `${name}-both`);
  await convertTinyBothWays(name, folder);
  const golden = readGolden(name);
  const prompt: Parameters<LocalRanks['logits']>[0] = {
    phase: 'prefill',
    sequences: [{ slot: 0, start: 0, tokens: golden.inputIds }],
    want: { kind: 'all' },
  };
  await using own = await startLocalRanks(join(folder, 'own'), 1, { backend: 'ggml' });
  await using portable = await startLocalRanks(join(folder, 'portable'), 2, { backend: 'ggml', scheme: 'mla' });
  expectClose(await portable.logits(prompt), await own.logits(prompt), CONVERTED_EXACTLY);
  await using checkpoint = await openCheckpoint(join(folder, 'portable'));
  expect(checkpoint.config).toMatchObject({ architecture: 'deepseek_v3', experts: null, rope: { interleaved: true } });
});

test('a gain that takes W_UK and W_UV beyond half precision is computed in float32', async () => {
  const folder = join(root, 'spread');
  await convertTinyBothWays('llama-gqa', folder, 4000);
  const prompt: Parameters<LocalRanks['logits']>[0] = {
    phase: 'prefill',
    sequences: [{ slot: 0, start: 0, tokens: readGolden('llama-gqa').inputIds }],
    want: { kind: 'all' },
  };
  await using ranks = await startLocalRanks(join(folder, 'portable'), 1, { backend: 'ggml', weights: 'f16' });
  expect((await ranks.logits(prompt)).every(Number.isFinite)).toBe(true);
});

test.each([
  ['gemma2', 'caps attention scores; it caps logits; it has sliding windows; it has norms behind its sublayers'],
  ['mixtral', 'routes to experts'],
  ['qwen2', 'has biases on its queries'],
  ['llama-yarn', 'has scaled rotary frequencies'],
])('a portable %s is refused by name', async (name, reason) => {
  await using source = await openCheckpoint(tinyModel(name));
  expect(() => checkPortable(source)).toThrow(reason);
});
