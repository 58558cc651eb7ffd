/** Keys between machines: who has none, or another, is refused and counted; who listens on the way learns nothing. */
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { RingCurve } from '../../collective/curve.ts';
import { encodeMessage } from '../../collective/frame.ts';
import { readKeys, writeMachineKeys } from '../../collective/key-files.ts';
import { bindRing } from '../../collective/zeromq-group.ts';
import { Cluster } from '../../coordinator/cluster.ts';
import { controlAddress } from '../../coordinator/remote/control-address.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';
import { seededRandom } from '../helpers/random.ts';
import { startRelay } from '../helpers/relay.ts';
import { freePort, remoteConfig, startWorker } from '../helpers/remote.ts';

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

/** A cluster of these hosts with keys; `lines`: what it logged. */
async function start(hosts: readonly string[], keys: string | undefined) {
  const lines: string[] = [];
  const cluster = await Cluster.start({
    checkpoint,
    config: remoteConfig({ model, port, hosts, ...(keys === undefined ? {} : { keys }) }),
    log: (line) => lines.push(line),
  });
  const step = async (): Promise<Float32Array> => {
    const sequences = [{ slot: 0, start: 0, tokens: prompt }];
    return (await cluster.step({ phase: 'prefill', sequences, want: { kind: 'last' } })).logits;
  };
  return { cluster, lines, step, [Symbol.asyncDispose]: () => cluster[Symbol.asyncDispose]() };
}

const prompt = [1, 5, 9, 300, 301, 302];

test('machines with a key of their own, or the shared one, serve; others are told why; bytes of every kind change nothing', async () => {
  const address = `tcp://127.0.0.1:${port}`;
  const keys = join(sandbox.folder, 'cache', 'keys');
  const [own, removed] = [await keysFor('own', keys), await writeMachineKeys(keys, 'removed')];
  const list = join(keys, 'authorized');
  writeFileSync(list, readFileSync(list, 'utf8').replace(/.* removed\n/, ''));
  const foreign = await writeMachineKeys(join(sandbox.folder, 'cache', 'other'), 'own');
  const args = ['--join', address, '--model', model];
  await using _ = startWorker(sandbox, [...args, '--rank', '1', '--keys', own]);
  await using __ = startWorker(sandbox, [...args, '--rank', '2', '--keys', keys]);
  await using started = await start(['local', 'join', 'join'], keys);
  const { cluster, lines, step } = started;
  expect(lines).toContainEqual(expect.stringMatching(/--keys \.\/keys$/));
  const logits = await step();
  expect(cluster.refused.handshakes).toBe(0);
  await using none = startWorker(sandbox, args);
  await using other = startWorker(sandbox, [...args, '--keys', foreign]);
  await using out = startWorker(sandbox, [...args, '--keys', removed]);
  await none.said('asks for a key; make one on its machine with `tpla keys --for NAME`');
  await other.said('does not take our key: the coordinator uses none, or another');
  await out.said('refused the key');
  expect(cluster.refused.handshakes).toBeGreaterThanOrEqual(3);
  expect(lines).toContainEqual(expect.stringContaining('its key is not allowed here; `tpla keys --for NAME`'));
  const random = seededRandom(5);
  const idle = connect(port, '127.0.0.1');
  await once(idle, 'connect');
  for (const target of [port, portOf(cluster.ringEndpoints[1]!)])
    for (let i = 0; i < 20; i++) await rawBytes(target, Buffer.from(Array.from({ length: 200 }, () => random() * 256)));
  expect(await step()).toEqual(logits);
  expect(lines).toContainEqual(expect.stringContaining(`refused: a connection to ${address}: `));
  idle.destroy();
}, 120_000);

describe('who listens on the way', () => {
  /** What a rank and its coordinator say to each other, and the logits that the rank sent. */
  async function overheard(keys: string | undefined) {
    await using relay = await startRelay(port);
    const key = keys === undefined ? [] : ['--keys', join(keys, 'far.key')];
    const args = ['--join', `tcp://127.0.0.1:${relay.port}`, '--model', model, '--rank', '1', ...key];
    await using _ = startWorker(sandbox, args);
    await using started = await start(['local', 'join'], keys);
    const logits = await started.step();
    const { start: first, end } = started.cluster.plan.ranks[1]!.vocab;
    const said = relay.all();
    const [handshake] = relay.sent();
    const refused = started.cluster.refused.handshakes;
    // Said again by somebody who has only listened.
    await rawBytes(port, handshake!);
    await rawBytes(port, handshake!.subarray(0, 264));
    const replays = started.cluster.refused.handshakes - refused;
    expect(await started.step()).toEqual(logits);
    return { said, replays, logits: Buffer.from(Float32Array.from(logits.subarray(first, end)).buffer) };
  }

  /** As MessagePack has them. */
  const [packed] = encodeMessage({ tokens: prompt });
  const tokens = packed!.subarray(packed!.indexOf('tokens'));

  test('without keys reads prompt and logits, and with keys neither, nor can say the same again', async () => {
    const plain = await overheard(undefined);
    expect(plain.said.includes(tokens)).toBe(true);
    expect(plain.said.includes(plain.logits.subarray(0, 64))).toBe(true);
    expect(plain.said.includes(model)).toBe(true);
    const keys = join(sandbox.folder, 'cache', 'keys');
    await writeMachineKeys(keys, 'far');
    port = await freePort();
    const secret = await overheard(keys);
    expect(secret.logits).toEqual(plain.logits);
    for (const text of [tokens, plain.logits.subarray(0, 64), plain.logits.subarray(0, 8), Buffer.from(model)])
      expect(secret.said.includes(text)).toBe(false);
    expect(secret.said.length).toBeGreaterThan(plain.said.length);
    expect(secret.replays).toBe(2);
  }, 120_000);

  test.each([false, true])('between two ranks, with keys: %s', async (hasKeys) => {
    const curves = hasKeys ? [await RingCurve.open(), await RingCurve.open()] : [];
    await using first = await bindRing('tcp://127.0.0.1:*', curves[0]);
    await using second = await bindRing('tcp://127.0.0.1:*', curves[1]);
    const rings = [first, second];
    await using toFirst = await startRelay(portOf(first.endpoint));
    await using toSecond = await startRelay(portOf(second.endpoint));
    const endpoints = [toFirst, toSecond].map((relay) => `tcp://127.0.0.1:${relay.port}`);
    const keys = rings.map(({ key }) => key);
    const groups = await Promise.all(
      rings.map((ring, rank) => ring.join({ rank, worldSize: 2, epoch: 0, endpoints, keys, timeoutMs: 5000 })),
    );
    const random = seededRandom(9);
    const buffers = [0, 1].map(() => Float32Array.from({ length: 64 }, () => random() - 0.5));
    const tensor = Buffer.from(Float32Array.from(buffers[0]!).buffer);
    await Promise.all(groups.map((group, rank) => group.allReduceSum(buffers[rank]!, 'test')));
    expect(buffers[0]).toEqual(buffers[1]);
    expect(toSecond.all().includes(tensor)).toBe(!hasKeys);
    expect(toSecond.all().includes(tensor.subarray(0, 8))).toBe(!hasKeys);
    for (const each of [...groups, ...curves]) await each[Symbol.asyncDispose]();
  });
});

test('an address that other machines reach asks for keys, or for the flag that is named for the risk', async () => {
  const config = remoteConfig({ model, port, hosts: ['join'], address: '192.0.2.1' });
  await expect(controlAddress(config)).rejects.toThrow(
    `coordinator.bind: tcp://192.0.2.1:${port} can be reached from other machines and there are no keys (security.curve is off)`,
  );
  const allowed = { ...config, security: { ...config.security, allowNoKeys: true } };
  expect(await controlAddress(allowed)).toEqual({ endpoint: `tcp://192.0.2.1:${port}`, keys: undefined });
  const folder = join(sandbox.folder, 'cache', 'keys');
  await expect(controlAddress(remoteConfig({ model, port, hosts: ['join'], keys: folder }))).rejects.toThrow(
    `security.keys: no key file at ${folder}; run \`tpla keys --out ${folder}\``,
  );
  expect(await readKeys(folder)).toBeNull();
  const byShell = remoteConfig({ model, port, hosts: ['ssh://a@192.0.2.7'] });
  await expect(controlAddress(byShell)).rejects.toThrow('ranks.0.host: ssh://a@192.0.2.7 cannot reach this machine at');
});

/** What the command makes. */
async function keysFor(machine: string, folder: string): Promise<string> {
  const { code, stdout, stderr } = await sandbox.run(['keys', '--for', machine, '--out', folder]);
  expect({ code, stdout }).toEqual({ code: 0, stdout: `${join(folder, machine)}.key\n` });
  expect(stderr).toContain(`To shut ${machine} out, remove its line from ${join(folder, 'authorized')}`);
  const again = await sandbox.run(['keys', '--for', machine, '--out', folder]);
  expect(again.code).toBe(2);
  expect(again.stderr).toContain(`--for: ${machine} has a line in`);
  return stdout.trim();
}

function portOf(endpoint: string): number {
  return Number(/:(\d+)$/.exec(endpoint)![1]);
}

async function rawBytes(port: number, bytes: Buffer): Promise<void> {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => undefined);
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  socket.end(bytes);
  socket.resume();
  await closed;
}
