import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ControlClient } from '../../../collective/control-client.ts';
import { ControlServer } from '../../../collective/control.ts';
import { protocolVersion } from '../../../collective/messages.ts';
import { Curve, encodeZ85, parseKeys, readKeys, writeKeys, type KeyPair } from '../../../collective/curve.ts';
import { bindRing } from '../../../collective/zeromq-group.ts';
import { connectPush } from '../../../collective/zmq.ts';
import { ConfigError } from '../../../config/errors.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'curve-test-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

async function newKeys(name: string): Promise<KeyPair> {
  return (await readKeys(await writeKeys(join(folder, name))))!;
}

describe('key files', () => {
  test('are for their user alone, are read back, and are never overwritten', async () => {
    const path = await writeKeys(join(folder, 'keys'));
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const keys = await readKeys(join(folder, 'keys'));
    expect(keys).toEqual(JSON.parse(readFileSync(path, 'utf8')));
    await expect(writeKeys(join(folder, 'keys'))).rejects.toThrow(`keys: cannot write ${path}`);
    expect(await readKeys(path)).toEqual(keys);
    expect(await readKeys(join(folder, 'none'))).toBeNull();
  });

  test('that others can read are refused', async () => {
    const path = await writeKeys(folder);
    chmodSync(path, 0o644);
    await expect(readKeys(folder)).rejects.toThrow(/has mode 644, so others can read the secret key; .*chmod 600/);
    chmodSync(path, 0o440);
    expect(await readKeys(folder)).not.toBeNull();
  });

  test.each(['', '{', '[]', '{"publicKey":"short","secretKey":"short"}'])('hold what tpla keys writes: %j', (text) => {
    writeFileSync(join(folder, 'k'), text, { mode: 0o600 });
    expect(() => parseKeys(text, 'k')).toThrow(ConfigError);
    expect(() => parseKeys(text, 'k')).toThrow('expected what `tpla keys` writes');
  });

  test('encodeZ85 gives the digits of RFC 32', () => {
    expect(encodeZ85(Buffer.from([0x86, 0x4f, 0xd2, 0x6f, 0xb5, 0x59, 0xf7, 0x5b]))).toBe('HelloWorld');
  });
});

describe('the control plane', () => {
  const hello = {
    kind: 'hello',
    rank: 0,
    pid: 1,
    host: 'h',
    protocol: protocolVersion,
    version: '0',
    token: '',
    ringEndpoint: 'r',
  } as const;

  test('hears who has the key, and nobody else', async () => {
    const keys = await newKeys('a');
    await using curve = await Curve.open(keys);
    await using server = await ControlServer.bind('tcp://127.0.0.1:*', 200, curve);
    const refusals: string[] = [];
    server.onRefusal = (reason) => refusals.push(reason);
    await using stranger = await Curve.open({ ...(await newKeys('b')), publicKey: keys.publicKey });
    await using other = await Curve.open(await newKeys('c'));
    const { endpoint } = server;
    await expect(ControlClient.connect(endpoint, 0, 5000)).rejects.toThrow('asks for a key; copy the key file');
    // Knows the public key of the cluster, and has another pair: only the handler can tell.
    const knowing = { client: { ...other.client, curveServerKey: keys.publicKey } };
    await expect(ControlClient.connect(endpoint, 0, 5000, Object.assign(other, knowing))).rejects.toThrow(
      'refused the key',
    );
    await expect(ControlClient.connect(endpoint, 0, 500, stranger)).rejects.toThrow();
    expect(curve.refused).toBe(1);
    await expect.poll(() => server.refusedHandshakes).toBeGreaterThanOrEqual(2);
    expect(refusals).toContainEqual(expect.stringContaining('its key is not the one of this cluster'));
    await using client = await ControlClient.connect(endpoint, 0, 5000, curve);
    await client.send(hello);
    expect((await server.receive(5000)).message).toEqual(hello);
  });
});

test('two ranks sum over a ring with keys; a stranger does not reach it', async () => {
  await using curve = await Curve.open(await newKeys('a'));
  await using other = await Curve.open(await newKeys('b'));
  await using first = await bindRing('tcp://127.0.0.1:*', curve);
  await using second = await bindRing('tcp://127.0.0.1:*', curve);
  const endpoints = [first.endpoint, second.endpoint];
  for (const options of [undefined, other.client]) {
    const push = connectPush(first.endpoint, 300, options);
    await expect(push.send('x')).rejects.toThrow();
    push.close();
  }
  const groups = await Promise.all(
    [first, second].map((ring, rank) => ring.join({ rank, worldSize: 2, epoch: 0, endpoints, timeoutMs: 5000 })),
  );
  const buffers = [Float32Array.of(1, 2, 3), Float32Array.of(10, 20, 30)];
  await Promise.all(groups.map((group, rank) => group.allReduceSum(buffers[rank]!, 'test')));
  expect(buffers.map((buffer) => [...buffer])).toEqual([
    [11, 22, 33],
    [11, 22, 33],
  ]);
  for (const group of groups) await group[Symbol.asyncDispose]();
});
