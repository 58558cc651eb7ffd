/** A cluster that lost ranks on other machines serves on the others, under the numbers they had, until they come back. */
import { once } from 'node:events';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { StepResult } from '../../coordinator/ask-ranks.ts';
import { Cluster } from '../../coordinator/cluster.ts';
import { Load } from '../../coordinator/faults/load.ts';
import { Scheduler } from '../../coordinator/scheduler.ts';
import { Supervisor } from '../../coordinator/supervisor.ts';
import { openText } from '../../coordinator/text.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { startCluster } from '../helpers/cluster.ts';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';
import { freePort, remoteConfig, startWorker, type Worker } from '../helpers/remote.ts';

const model = join(goldenFolder, 'stories260K');
let sandbox: Sandbox;
let checkpoint: Checkpoint;
let port: number;
beforeEach(async () => {
  sandbox = new Sandbox();
  checkpoint = await openCheckpoint(model);
  port = await freePort();
});
afterEach(async () => {
  await checkpoint[Symbol.asyncDispose]();
  expect(sandbox.leftovers()).toEqual([]);
  sandbox[Symbol.dispose]();
});

const deadline = { timeout: 40_000, interval: 20 };

function step(runner: Pick<Cluster, 'step'>): Promise<StepResult> {
  return runner.step({
    phase: 'prefill',
    sequences: [{ slot: 0, start: 0, tokens: [1, 5, 9] }],
    want: { kind: 'last' },
  });
}

async function logitsOf(ranks: number): Promise<Float32Array> {
  await using local = await startCluster(model, { ranks, context: 256 });
  return (await step(local.cluster)).logits;
}

function worker(rank: number): Worker {
  const args = ['--join', `tcp://127.0.0.1:${port}`, '--model', model, '--rank', String(rank)];
  // Each on a host of its own: sums are compared bit by bit with those of local ranks, which are flat.
  return startWorker(sandbox, args, { TPLA_HOST: `host-${rank}` });
}

async function supervise(hosts: readonly string[]): Promise<Supervisor> {
  const faults = { rejoinMs: 300, allowFewerRanks: true };
  return Supervisor.start({ checkpoint, config: remoteConfig({ model, port, hosts, faults }), log: () => undefined });
}

test('two of three ranks, and all three again', async () => {
  await using first = worker(1);
  await using second = worker(2);
  await using supervisor = await supervise(['local', 'join', 'join']);
  expect((await step(supervisor)).logits).toEqual(await logitsOf(3));
  first.running.child.kill('SIGKILL');
  await expect.poll(() => supervisor.state, deadline).toBe('degraded');
  expect(supervisor.cluster.plan.worldSize).toBe(2);
  expect(supervisor.events.map(({ kind }) => kind)).toContain('degraded');
  expect(supervisor.events.find(({ kind }) => kind === 'degraded')?.text).toMatch(
    /^serves on 2 of 3 ranks: rank 1.*tpla worker --join .* --rank 1/,
  );
  expect((await step(supervisor)).logits).toEqual(await logitsOf(2));
  // It asks for the number that it always had.
  await second.said('rank 1 of 2');
  await using again = worker(1);
  await expect.poll(() => supervisor.state, deadline).toBe('ok');
  await again.said('rank 1 of 3');
  expect(supervisor.cluster.plan.worldSize).toBe(3);
  expect((await step(supervisor)).logits).toEqual(await logitsOf(3));
}, 90_000);

test('the local rank alone listens where the others come back; a request goes on through both changes', async () => {
  await using first = worker(1);
  await using supervisor = await supervise(['local', 'join']);
  await using scheduler = new Scheduler(supervisor, { maxQueued: 1, recover: (error) => supervisor.recover(error) });
  const load = new Load(scheduler, await openText(model), ['Once upon a time'], 200);
  await load.recordUndisturbed();
  const running = load.run();
  first.running.child.kill('SIGKILL');
  await expect.poll(() => supervisor.state, deadline).toBe('degraded');
  expect(supervisor.cluster.plan.worldSize).toBe(1);
  await using again = worker(1);
  await expect.poll(() => supervisor.state, deadline).toBe('ok');
  await again.said('rank 1 of 2');
  expect(supervisor.cluster.plan.worldSize).toBe(2);
  load.stop();
  await running;
  expect(load.result()).toMatchObject({ lostTokens: 0, wrongTokens: 0, firstError: null });
}, 90_000);

test('an address that is free a moment later is waited for, where that is asked for', async () => {
  const other = createServer().listen(port, '127.0.0.1');
  await once(other, 'listening');
  const start = (bindWithinMs: number): Promise<Cluster> => {
    const config = remoteConfig({ model, port, hosts: ['local'] });
    return Cluster.start({ checkpoint, config, bindWithinMs, log: () => undefined });
  };
  await expect(start(0)).rejects.toThrow(`cannot bind tcp://127.0.0.1:${port}: Address already in use`);
  setTimeout(() => other.close(), 400);
  await using cluster = await start(20_000);
  expect(cluster.plan.worldSize).toBe(1);
});
