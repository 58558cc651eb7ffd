/** Keys between machines: who has none, or another, is refused and counted; strangers' bytes change nothing. */
import { connect } from 'node:net';
import { join } from 'node:path';
import { once } from 'node:events';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { readKeys, writeKeys } from '../../collective/curve.ts';
import { Cluster } from '../../coordinator/cluster.ts';
import { controlAddress } from '../../coordinator/remote/control-address.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';
import { seededRandom } from '../helpers/random.ts';
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

test('a rank with the key serves; without it is told why; bytes of every kind change nothing', async () => {
  const address = `tcp://127.0.0.1:${port}`;
  const keys = join(sandbox.folder, 'cache', 'keys');
  await writeKeys(keys);
  const lines: string[] = [];
  const args = ['--join', address, '--model', model];
  await using _ = startWorker(sandbox, [...args, '--keys', keys]);
  await using none = startWorker(sandbox, args);
  await using cluster = await Cluster.start({
    checkpoint,
    config: remoteConfig({ model, port, hosts: ['local', 'join'], keys }),
    log: (line) => lines.push(line),
  });
  expect(lines).toContainEqual(expect.stringMatching(/--keys \.\/keys$/));
  const step = () =>
    cluster.step({ phase: 'prefill', sequences: [{ slot: 0, start: 0, tokens: [1, 5, 9] }], want: { kind: 'last' } });
  const { logits } = await step();
  await none.said('asks for a key; copy the key file of its machine and name it with --keys');
  const random = seededRandom(5);
  const idle = connect(port, '127.0.0.1');
  await once(idle, 'connect');
  const ringPort = Number(/:(\d+)$/.exec(cluster.ringEndpoints[1]!)![1]);
  for (const target of [port, ringPort])
    for (let i = 0; i < 20; i++) await rawBytes(target, Buffer.from(Array.from({ length: 200 }, () => random() * 256)));
  expect((await step()).logits).toEqual(logits);
  expect(cluster.refused.handshakes).toBeGreaterThanOrEqual(1);
  expect(lines).toContainEqual(expect.stringContaining(`refused: a connection to ${address}: `));
  idle.destroy();
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

async function rawBytes(port: number, bytes: Buffer): Promise<void> {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => undefined);
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  socket.end(bytes);
  socket.resume();
  await closed;
}
