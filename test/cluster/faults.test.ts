/** Ranks that die or run out of memory, and strangers: the cluster recovers, says so, and leaves nothing behind. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { encodeCollective, encodeMessage } from '../../collective/frame.ts';
import { protocolVersion } from '../../collective/messages.ts';
import { connectDealer, connectPush } from '../../collective/zmq.ts';
import type { ClusterConfig } from '../../config/cluster.ts';
import { ConfigError, PeerError } from '../../config/errors.ts';
import { loadClusterConfig, type ClusterFlags } from '../../config/load.ts';
import type { StepResult } from '../../coordinator/ask-ranks.ts';
import { Cluster } from '../../coordinator/cluster.ts';
import type { ClusterEvent } from '../../coordinator/cluster-events.ts';
import { Supervisor, type SupervisorOptions } from '../../coordinator/supervisor.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { goldenFolder } from '../helpers/golden.ts';
import { rankProcesses, Sandbox } from '../helpers/program.ts';
import { seededRandom } from '../helpers/random.ts';

const model = join(goldenFolder, 'stories260K');
let sandbox: Sandbox;
let checkpoint: Checkpoint;
const temporaryBefore = process.env['TMPDIR'];
beforeEach(async () => {
  sandbox = new Sandbox();
  process.env['TMPDIR'] = sandbox.folder;
  checkpoint = await openCheckpoint(model);
});
afterEach(async () => {
  if (temporaryBefore === undefined) delete process.env['TMPDIR'];
  else process.env['TMPDIR'] = temporaryBefore;
  await checkpoint[Symbol.asyncDispose]();
  expect(rankProcesses(sandbox.folder).size).toBe(0);
  expect(sandbox.leftovers()).toEqual([]);
  // Segments of clusters that other tests start have a name for a moment.
  await expect.poll(segments).toEqual([]);
  sandbox[Symbol.dispose]();
});

async function configOf(flags: ClusterFlags, faults: Partial<ClusterConfig['faults']> = {}): Promise<ClusterConfig> {
  const config = await loadClusterConfig({ flags: { model, ranks: 2, context: 256, ...flags } });
  return { ...config, faults: { ...config.faults, backoffMs: 0, ...faults } };
}

/** A supervisor, and the next event of a kind. */
async function supervise(
  config: ClusterConfig,
  options: Partial<SupervisorOptions> = {},
): Promise<{ supervisor: Supervisor; until: (kind: ClusterEvent['kind']) => Promise<ClusterEvent> }> {
  const waiting: { kind: string; resolve: (event: ClusterEvent) => void }[] = [];
  const supervisor = await Supervisor.start({
    checkpoint,
    config,
    log: () => undefined,
    onEvent: (event) => waiting.filter(({ kind }) => kind === event.kind).forEach(({ resolve }) => resolve(event)),
    ...options,
  });
  return { supervisor, until: (kind) => new Promise((resolve) => waiting.push({ kind, resolve })) };
}

function step(runner: Pick<Cluster, 'step'>, tokens: number[]): Promise<StepResult> {
  return runner.step({ phase: 'prefill', sequences: [{ slot: 0, start: 0, tokens }], want: { kind: 'last' } });
}

test('a rank that runs out of memory is named so, and replaced', async () => {
  const { supervisor, until } = await supervise(await configOf({}), { allowChaos: true });
  await using _ = supervisor;
  const before = await step(supervisor, [1, 5, 9]);
  const { pid } = supervisor.cluster.ranks[1]!;
  const [lost, recovered] = [until('lost'), until('recovered')];
  await supervisor.cluster.chaos(1, { action: 'memory', peer: 0, ms: 0 });
  expect((await lost).text.split('\n')[0]).toMatch(
    new RegExp(
      `^rank 1 \\(process ${pid}\\) ran out of memory \\(SIGABRT\\) between requests; it printed: FATAL ERROR`,
    ),
  );
  await recovered;
  expect((await step(supervisor, [1, 5, 9])).logits).toEqual(before.logits);
});

describe('recovery', () => {
  test('replaces the lost rank alone, and says so', async () => {
    const { supervisor, until } = await supervise(await configOf({ ranks: 3 }));
    await using _ = supervisor;
    const before = await step(supervisor, [1, 5, 9]);
    const pids = supervisor.cluster.ranks.map(({ pid }) => pid);
    const [lost, recovered] = [until('lost'), until('recovered')];
    process.kill(pids[1]!, 'SIGKILL');
    expect((await lost).text).toMatch(new RegExp(`^rank 1 \\(process ${pids[1]}\\) was killed by SIGKILL`));
    expect(supervisor.state).toBe('recovering');
    expect(supervisor.health()[1]).toMatchObject({ rank: 1, state: 'lost', error: (await lost).text });
    await recovered;
    expect(supervisor.state).toBe('ok');
    const now = supervisor.cluster.ranks.map(({ pid }) => pid);
    expect([now[0], now[2]]).toEqual([pids[0], pids[2]]);
    expect(now[1]).not.toBe(pids[1]);
    expect(supervisor.health().map(({ restarts }) => restarts)).toEqual([0, 1, 0]);
    expect((await step(supervisor, [1, 5, 9])).logits).toEqual(before.logits);
  });

  test('of two ranks at once', async () => {
    const { supervisor, until } = await supervise(await configOf({ ranks: 3 }));
    await using _ = supervisor;
    const before = await step(supervisor, [1, 5, 9]);
    const recovered = until('recovered');
    for (const rank of [0, 2]) process.kill(supervisor.cluster.ranks[rank]!.pid, 'SIGKILL');
    await recovered;
    await expect.poll(() => supervisor.state, { timeout: 20_000 }).toBe('ok');
    expect((await step(supervisor, [1, 5, 9])).logits).toEqual(before.logits);
  });

  test('ends at the ceiling: every request then gets the cause', async () => {
    const { supervisor, until } = await supervise(await configOf({}, { restarts: 0 }));
    await using _ = supervisor;
    const { pid } = supervisor.cluster.ranks[0]!;
    const failed = until('failed');
    process.kill(pid, 'SIGKILL');
    await failed;
    const cause = new RegExp(`^rank 0 \\(process ${pid}\\) was killed by SIGKILL`);
    await expect(step(supervisor, [1])).rejects.toThrow(cause);
    await expect(step(supervisor, [1])).rejects.toBeInstanceOf(PeerError);
    expect(supervisor.state).toBe('failed');
    expect(supervisor.health()[0]?.error).toMatch(cause);
  });

  test('on fewer ranks, where that is allowed', async () => {
    const { supervisor, until } = await supervise(await configOf({}, { restarts: 0, allowFewerRanks: true }));
    await using _ = supervisor;
    const degraded = until('degraded');
    process.kill(supervisor.cluster.ranks[1]!.pid, 'SIGKILL');
    expect((await degraded).text).toMatch(/^serves on 1 of 2 ranks: rank 1 .* was killed by SIGKILL/);
    await expect.poll(() => supervisor.state).toBe('degraded');
    expect(supervisor.cluster.plan.worldSize).toBe(1);
    expect((await step(supervisor, [1, 2])).logits).toHaveLength(supervisor.vocabSize);
  });

  test('of a cluster that is no drill: chaos is refused', async () => {
    const { supervisor } = await supervise(await configOf({}));
    await using _ = supervisor;
    await expect(supervisor.cluster.chaos(0, { action: 'slow', peer: 1, ms: 1 })).rejects.toThrow(
      'not started for fault drills',
    );
  });
});

describe('strangers', () => {
  test('a rank with other model files is refused by name', async () => {
    const folder = join(sandbox.folder, 'cache', 'changing');
    cpSync(model, folder, { recursive: true });
    await using opened = await openCheckpoint(folder);
    const file = join(folder, 'config.json');
    writeFileSync(file, readFileSync(file, 'utf8').replace('1e-05', '0.25'));
    const starting = Cluster.start({ checkpoint: opened, config: await configOf({}), log: () => undefined });
    await expect(starting).rejects.toThrow(
      /has identity .*, the coordinator's model has .*; give every rank the same files/,
    );
    await expect(starting).rejects.toBeInstanceOf(ConfigError);
  });

  test('a second process for a rank that is there changes nothing', async () => {
    const { supervisor } = await supervise(await configOf({}));
    await using _ = supervisor;
    const before = await step(supervisor, [1, 2]);
    const { endpoint } = controlOf(sandbox);
    const intruder = (await connectDealer(endpoint, 10_000)).socket!;
    const hello = {
      kind: 'hello',
      rank: 1,
      pid: 1,
      host: 'h',
      protocol: protocolVersion,
      version: '0',
      ringEndpoint: 'ipc:///x',
      ringKey: '',
    };
    for (const token of ['', 'guessed']) await intruder.send(encodeMessage({ ...hello, token }));
    await intruder.send(
      encodeMessage({ kind: 'failed', rank: 1, epoch: 0, id: null, error: 'PeerError', message: '' }),
    );
    expect((await step(supervisor, [1, 2])).logits).toEqual(before.logits);
    await expect.poll(() => supervisor.cluster.refused.messages).toBe(3);
    expect(supervisor.events.map(({ kind }) => kind)).toEqual(['started']);
    intruder.close();
  });

  test('bytes of every kind on every socket change nothing', async () => {
    const { supervisor } = await supervise(await configOf({ transport: 'zeromq' }));
    await using _ = supervisor;
    const before = await step(supervisor, [1, 2, 3]);
    const random = seededRandom(11);
    const { folder, endpoint } = controlOf(sandbox);
    for (const name of readdirSync(folder))
      for (let i = 0; i < 20; i++) await rawBytes(join(folder, name), Buffer.from(randomBytes(random, 200)));
    const header = {
      operation: 'all-reduce',
      groupTag: 1,
      epoch: 0,
      sequence: 1,
      source: 1,
      step: 0,
      total: 8,
      offset: 0,
    } as const;
    const frame = encodeCollective(header, new Float32Array(8));
    for (const name of readdirSync(folder).filter((file) => file.startsWith('rank-'))) {
      const push = connectPush(`ipc://${join(folder, name)}`, 5000);
      for (let i = 0; i < 300; i++) await push.send(mutated(frame, random));
      push.close();
    }
    const dealer = (await connectDealer(endpoint, 10_000)).socket!;
    const [message] = encodeMessage({
      kind: 'hello',
      rank: 0,
      pid: 1,
      host: 'h',
      protocol: 2,
      version: '0',
      token: 't',
    });
    for (let i = 0; i < 300; i++) await dealer.send(mutated(message!, random));
    dealer.close();
    for (let i = 0; i < 3; i++) expect((await step(supervisor, [1, 2, 3])).logits).toEqual(before.logits);
    expect(supervisor.events.map(({ kind }) => kind)).toEqual(['started']);
  });

  test('a rank started by hand with a wrong token is no rank', async () => {
    const { supervisor } = await supervise(await configOf({}));
    await using _ = supervisor;
    const { endpoint } = controlOf(sandbox);
    const script = join(import.meta.dirname, '../../dist/worker/main.js');
    const child = spawn(process.execPath, [script, '--connect', endpoint, '--rank', '1', '--token', 'no'], {
      stdio: 'ignore',
    });
    await expect.poll(() => supervisor.cluster.refused.messages, { timeout: 20_000 }).toBe(1);
    expect((await step(supervisor, [1])).logits).toHaveLength(supervisor.vocabSize);
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  });
});

function segments(): string[] {
  return existsSync('/dev/shm') ? readdirSync('/dev/shm').filter((name) => name.startsWith('tpla-')) : [];
}

/** The one run whose socket files lie in the sandbox. */
function controlOf({ folder }: Sandbox): { folder: string; endpoint: string } {
  const [name] = readdirSync(folder).filter((each) => each.startsWith('tpla-'));
  const run = join(folder, name!);
  return { folder: run, endpoint: `ipc://${join(run, 'control.sock')}` };
}

async function rawBytes(path: string, bytes: Buffer): Promise<void> {
  const socket = connect(path);
  socket.on('error', () => undefined);
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  socket.end(bytes);
  socket.resume();
  await closed;
}

function randomBytes(random: () => number, count: number): number[] {
  return Array.from({ length: count }, () => Math.floor(random() * 256));
}

function mutated(frame: Buffer, random: () => number): Buffer {
  const copy = Buffer.from(frame.subarray(0, Math.ceil(random() * frame.length)));
  for (let i = 0; i < 3; i++) copy[Math.floor(random() * copy.length)] = Math.floor(random() * 256);
  return copy;
}
