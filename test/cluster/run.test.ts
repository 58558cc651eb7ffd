/** `tpla run` with real processes: the same text on any number of ranks, as a known implementation writes it. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';

const model = join(goldenFolder, 'stories260K');
const golden = readFileSync(join(model, 'golden_greedy_200.txt'), 'utf8');
const goldenIds = z
  .array(z.number())
  .or(z.object({ ids: z.array(z.number()) }).transform(({ ids }) => ids))
  .parse(JSON.parse(readFileSync(join(model, 'golden_greedy_200.ids.json'), 'utf8')));

const documentSchema = z.object({
  text: z.string(),
  tokenIds: z.array(z.number()),
  promptTokens: z.number(),
  generatedTokens: z.number(),
  finishReason: z.enum(['stop', 'length']),
  scheme: z.string(),
  ranks: z.number(),
  timings: z.object({
    loadMs: z.number(),
    ttftMs: z.number(),
    prefillTokensPerSecond: z.number(),
    decodeTokensPerSecond: z.number(),
  }),
  perRank: z.array(
    z.object({
      rank: z.number(),
      pid: z.number(),
      computeMs: z.number(),
      waitMs: z.number(),
      bytesSent: z.number(),
      bytesReceived: z.number(),
      weightBytes: z.number(),
      cacheBytesPerToken: z.number(),
      cacheBytes: z.number().positive(),
      peakRssBytes: z.number(),
    }),
  ),
});

let sandbox: Sandbox;
beforeEach(() => {
  sandbox = new Sandbox();
});
afterEach(() => sandbox[Symbol.dispose]());

const raw = ['run', '--raw', '--model', model];

describe('greedy text', () => {
  test.each([1, 2, 3])('is the known one on %i ranks', async (ranks) => {
    const { code, stdout } = await sandbox.run([...raw, '', '--json', '--max-tokens', '200', '--ranks', `${ranks}`]);
    expect(code).toBe(0);
    const document = documentSchema.parse(JSON.parse(stdout));
    expect(document.tokenIds).toEqual(goldenIds.slice(-document.tokenIds.length));
    expect(document.text.trimStart()).toBe(golden.trimStart());
    expect(document).toMatchObject({
      scheme: 'gqa',
      ranks,
      promptTokens: 1,
      generatedTokens: 200,
      finishReason: 'length',
    });
    expect(document.perRank.map(({ rank }) => rank)).toEqual(Array.from({ length: ranks }, (_, rank) => rank));
    for (const rank of document.perRank) {
      expect(rank.weightBytes).toBeGreaterThan(0);
      expect(rank.computeMs).toBeGreaterThan(0);
      if (ranks === 1) expect(rank.bytesSent + rank.bytesReceived).toBe(0);
      else expect(Math.min(rank.bytesSent, rank.bytesReceived)).toBeGreaterThan(0);
    }
    expect(sandbox.leftovers()).toEqual([]);
    expect(sandbox.ranks().size).toBe(0);
  });

  test('goes to stdout alone, the table for each rank to stderr', async () => {
    const { code, stdout, stderr } = await sandbox.run([...raw, 'Once upon a time', '--max-tokens', '5']);
    expect(code).toBe(0);
    expect(stdout).toBe(', there was a little\n');
    expect(stderr).toMatch(/^scheme gqa on 2 ranks: /);
    expect(stderr).toMatch(/rank +pid +compute +wait +sent +received +weights +cache\/token +peak memory\n0 /);
  });

  test('the prompt may come from standard input', async () => {
    const input = Buffer.from('Once upon a time\n');
    const { stdout } = await sandbox.run([...raw, '--max-tokens', '5', '--ranks', '1'], { input });
    expect(stdout).toBe(', there was a little\n');
  });

  test('ends before a stop string, of which nothing is shown', async () => {
    const args = [...raw, 'Once upon a time', '--json', '--ranks', '1', '--stop', 'a little', '--stop', 'zebra'];
    const document = documentSchema.parse(JSON.parse((await sandbox.run(args)).stdout));
    expect(document).toMatchObject({ text: ', there was ', finishReason: 'stop' });
  });

  test('ends where the context does', async () => {
    const args = [...raw, 'Once upon a time', '--json', '--ranks', '1', '--context', '12'];
    const document = documentSchema.parse(JSON.parse((await sandbox.run(args)).stdout));
    expect(document).toMatchObject({ finishReason: 'length', generatedTokens: 12 - document.promptTokens });
  });
});

test('a drawn text repeats with its seed and differs with another', async () => {
  const drawn = async (seed: string): Promise<string> =>
    (await sandbox.run([...raw, 'Once', '--temperature', '1', '--seed', seed, '--max-tokens', '20', '--ranks', '1']))
      .stdout;
  const [first, again, other] = [await drawn('5'), await drawn('5'), await drawn('6')];
  expect(again).toBe(first);
  expect(other).not.toBe(first);
});
