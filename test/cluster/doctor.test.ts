/** `tpla doctor` on real ranks: every number there, sums checked, a verdict at the end. */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { z } from 'zod';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';

const stories = join(goldenFolder, 'stories260K');
const sums = z.object({ floats: z.number(), count: z.number(), p50Us: z.number().positive(), p99Us: z.number() });
const rank = z.object({
  rank: z.number(),
  device: z.string().min(1),
  gigabytesPerSecond: z.number().positive(),
  gigaflopsPerSecond: z.number().positive(),
  weightBytes: z.number().positive(),
  fullCacheBytes: z.number().positive(),
});
const documentSchema = z.object({
  machine: z.looseObject({ cores: z.number(), zeromq: z.string() }),
  ranks: z.object({ transport: z.string(), short: sums, long: sums, ranks: z.array(rank) }),
  verdict: z.object({ ready: z.literal(true), advice: z.array(z.string()) }),
});

test('two ranks are measured and judged', async () => {
  using sandbox = new Sandbox();
  const { code, stdout, stderr } = await sandbox.run(['doctor', '--model', stories, '--ranks', '2', '--json']);
  expect(code, stderr).toBe(0);
  const { ranks } = documentSchema.parse(JSON.parse(stdout));
  expect(ranks.ranks.map((each) => each.rank)).toEqual([0, 1]);
  expect(ranks.short).toMatchObject({ floats: 576, count: 200 });
  expect(sandbox.leftovers()).toEqual([]);
});

test('without a model the machine is still described, and what to do is said', async () => {
  using sandbox = new Sandbox();
  const { code, stdout } = await sandbox.run(['doctor']);
  expect(code).toBe(0);
  expect(stdout).toContain('ZeroMQ binding: ');
  expect(stdout).toMatch(
    /verdict: not ready\n- no ranks were started: the default model is not here; run `tpla fetch` or give --model\n$/,
  );
});
