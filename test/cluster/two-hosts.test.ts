/**
 * Sums in two levels between real rank processes: two ranks of the coordinator and two that join, which call this machine
 * by another name (TPLA_HOST), so that nothing but sockets is between them and the first two.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { StepResult } from '../../coordinator/ask-ranks.ts';
import type { ClusterEvent } from '../../coordinator/cluster-events.ts';
import { Cluster } from '../../coordinator/cluster.ts';
import { Supervisor } from '../../coordinator/supervisor.ts';
import { openCheckpoint } from '../../model/open.ts';
import { startCluster } from '../helpers/cluster.ts';
import { expectClose } from '../helpers/expect-close.ts';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';
import { freePort, remoteConfig, startWorker } from '../helpers/remote.ts';
import { CARRIED_IN_BLOCKS, SUM_ORDER } from '../helpers/tolerances.ts';

const model = join(goldenFolder, 'stories260K');
const hosts = ['local', 'local', 'join', 'join'];
let sandbox: Sandbox;
let port: number;
let address: string;
beforeEach(async () => {
  sandbox = new Sandbox();
  port = await freePort();
  address = `tcp://127.0.0.1:${port}`;
});
afterEach(() => {
  expect(sandbox.leftovers()).toEqual([]);
  sandbox[Symbol.dispose]();
});

function joining(rank: number) {
  const args = ['--join', address, '--model', model, '--rank', String(rank)];
  return startWorker(sandbox, args, { TPLA_HOST: 'b' });
}

function step(runner: Pick<Cluster, 'step'>): Promise<StepResult> {
  return runner.step({
    phase: 'prefill',
    sequences: [{ slot: 0, start: 0, tokens: [1, 5, 9] }],
    want: { kind: 'last' },
  });
}

describe.skipIf(process.platform === 'win32')('two ranks on each of two hosts', () => {
  test(
    'give the logits of local ranks, and again the same bits when a leader was killed',
    { timeout: 120_000 },
    async () => {
      const events: ClusterEvent[] = [];
      await using _third = joining(2);
      await using _fourth = joining(3);
      await using checkpoint = await openCheckpoint(model);
      await using supervisor = await Supervisor.start({
        checkpoint,
        config: remoteConfig({ model, port, hosts }),
        log: () => undefined,
        onEvent: (event) => events.push(event),
      });
      const { ranks } = supervisor.cluster;
      expect(ranks.map(({ transport }) => transport)).toEqual(hosts.map(() => 'shared memory, zeromq between hosts'));
      expect(ranks.map(({ host }) => host === 'b')).toEqual([false, false, true, true]);
      const { logits } = await step(supervisor);
      await using local = await startCluster(model, { ranks: 4, context: 256 });
      expectClose(logits, (await step(local.cluster)).logits, SUM_ORDER);
      const { pid } = ranks[2]!;
      process.kill(pid, 'SIGKILL');
      await expect.poll(() => events.at(-1)?.kind, { timeout: 20_000 }).toBe('recovered');
      expect(events[1]?.text).toMatch(new RegExp(`^rank 2 \\(process ${pid} on b\\): stopped answering`));
      expect((await step(supervisor)).logits).toEqual(logits);
    },
  );

  test(
    'send a quarter of the bytes where the payload is q8_0, for almost the same logits',
    { timeout: 120_000 },
    async () => {
      await using _third = joining(2);
      await using _fourth = joining(3);
      await using checkpoint = await openCheckpoint(model);
      const results: StepResult[] = [];
      for (const payload of ['f32', 'q8_0'] as const) {
        const config = remoteConfig({ model, port, hosts, payload });
        await using cluster = await Cluster.start({ checkpoint, config, log: () => undefined });
        results.push(await step(cluster));
      }
      const [exact, rounded] = results;
      expect(rounded!.logits).not.toEqual(exact!.logits);
      expectClose(rounded!.logits, exact!.logits, CARRIED_IN_BLOCKS);
      // A leader puts its own and the result into shared memory besides, as float32; so do the sums of the embedding.
      const sent = results.map(({ perRank }) => perRank[0]!.bytesSent);
      const values = 3 * 64 * (2 * 5 + 1);
      expect(sent[0]).toBe(3 * 4 * values);
      expect(sent[1]).toBe(2 * 4 * values + 4 * 3 * 64 + 34 * 6 * 2 * 5);
      expect(rounded!.perRank[1]!.bytesSent).toBe(4 * values);
    },
  );

  test('are named by doctor, and the links between the hosts measured', { timeout: 120_000 }, async () => {
    const file = join(sandbox.folder, 'cache', 'cluster.json');
    mkdirSync(join(sandbox.folder, 'cache'));
    const ranks = hosts.map((host) => ({ host }));
    writeFileSync(file, JSON.stringify({ model, ranks, coordinator: { bind: address, joinSeconds: 60 } }));
    await using _third = joining(2);
    await using _fourth = joining(3);
    const { code, stdout, stderr } = await sandbox.run(['doctor', file, '--json']);
    expect(code, stderr).toBe(0);
    const { transport, links } = (JSON.parse(stdout) as { ranks: { transport: string; links: object[] } }).ranks;
    expect(transport).toBe('shared memory, zeromq between hosts');
    const between = [0, 1].flatMap((from) => [2, 3].map((to) => ({ from, to })));
    expect(links).toMatchObject([{ from: null, to: 2 }, { from: null, to: 3 }, ...between]);
  });
});
