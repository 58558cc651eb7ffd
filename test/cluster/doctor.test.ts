/** `tpla doctor` on real ranks: every number there, sums checked, a verdict at the end. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { z } from 'zod';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';
import { freePort, startWorker } from '../helpers/remote.ts';

const stories = join(goldenFolder, 'stories260K');
const sums = z.object({ floats: z.number(), count: z.number(), p50Us: z.number().positive(), p99Us: z.number() });
const rank = z.object({
  rank: z.number(),
  device: z.string().min(1),
  gigabytesPerSecond: z.number().positive(),
  gigaflopsPerSecond: z.number().positive(),
  weightBytes: z.number().positive(),
  fullCacheBytes: z.number().positive(),
  freeMemoryBytes: z.number().positive(),
});
const link = z.object({
  from: z.number().nullable(),
  to: z.number(),
  latencyUs: z.number().positive(),
  megabytesPerSecond: z.number().positive(),
});
const documentSchema = z.object({
  machine: z.looseObject({ cores: z.number(), zeromq: z.string() }),
  ranks: z.object({ transport: z.string(), short: sums, long: sums, links: z.array(link), ranks: z.array(rank) }),
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

test(
  'links to ranks that join are measured: the coordinator to each, and each two ranks',
  { timeout: 120_000 },
  async () => {
    using sandbox = new Sandbox();
    const address = `tcp://127.0.0.1:${await freePort()}`;
    const file = join(sandbox.folder, 'cache', 'cluster.json');
    mkdirSync(join(sandbox.folder, 'cache'));
    const ranks = [{ host: 'local' }, { host: 'join' }, { host: 'join' }];
    writeFileSync(file, JSON.stringify({ model: stories, ranks, coordinator: { bind: address, joinSeconds: 60 } }));
    const workers = ['b', 'c'].map((host) =>
      startWorker(sandbox, ['--join', address, '--model', stories], { TPLA_HOST: host }),
    );
    const { code, stdout, stderr } = await sandbox.run(['doctor', file, '--json']);
    for (const worker of workers) await worker[Symbol.asyncDispose]();
    expect(code, stderr).toBe(0);
    const { links } = documentSchema.parse(JSON.parse(stdout)).ranks;
    expect(links.map(({ from, to }) => [from, to])).toEqual([
      [null, 1],
      [null, 2],
      [0, 1],
      [0, 2],
      [1, 2],
    ]);
  },
);

test('a rank that does not come is the verdict, after what is known of the machine', async () => {
  using sandbox = new Sandbox();
  const file = join(sandbox.folder, 'cache', 'cluster.json');
  mkdirSync(join(sandbox.folder, 'cache'));
  const coordinator = { bind: `tcp://127.0.0.1:${await freePort()}`, joinSeconds: 1 };
  writeFileSync(file, JSON.stringify({ model: stories, ranks: [{ host: 'join' }], coordinator }));
  const { code, stdout, stderr } = await sandbox.run(['doctor', file]);
  expect(code).toBe(3);
  expect(stdout).toContain('ZeroMQ binding: ');
  expect(stdout).toMatch(
    /verdict: not ready\n- the ranks could not be checked: rank 0: no answer in 1000 ms while starting; on its machine run: tpla worker --join/,
  );
  expect(stderr).toContain('tpla: rank 0: no answer in 1000 ms');
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
