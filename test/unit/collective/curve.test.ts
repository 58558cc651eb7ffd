import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ControlClient } from '../../../collective/control-client.ts';
import { ControlServer } from '../../../collective/control.ts';
import { protocolVersion } from '../../../collective/messages.ts';
import { Curve, curveClient, encodeZ85, RingCurve } from '../../../collective/curve.ts';
import {
  findMachineKeys,
  newMachineKeys,
  parseMachineKeys,
  readAuthorized,
  readKeys,
  writeKeys,
  writeMachineKeys,
  type KeyPair,
} from '../../../collective/key-files.ts';
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
    expect(() => parseMachineKeys(text, 'k')).toThrow(ConfigError);
    expect(() => parseMachineKeys(text, 'k')).toThrow('expected what `tpla keys` writes');
  });

  test('of machines: each its own, in the list until its line is removed', async () => {
    const [b, c] = [await writeMachineKeys(folder, 'b'), await writeMachineKeys(folder, 'c')];
    const cluster = (await readKeys(folder))!;
    const ofB = (await findMachineKeys(b))!;
    expect(ofB.path).toBe(b);
    expect(ofB.keys.coordinatorKey).toBe(cluster.publicKey);
    expect(statSync(b).mode & 0o777).toBe(0o600);
    const ofC = (await findMachineKeys(c))!.keys;
    expect(await readAuthorized(folder)).toEqual(
      new Map([
        [ofB.keys.publicKey, 'b'],
        [ofC.publicKey, 'c'],
      ]),
    );
    await expect(writeMachineKeys(folder, 'b')).rejects.toThrow('b has a line in');
    await expect(writeMachineKeys(folder, '../b')).rejects.toThrow('--for: expected the name of a machine');
    await expect(readKeys(b)).rejects.toThrow('is the key of a machine that joins, not of a coordinator');
    const list = join(folder, 'authorized');
    writeFileSync(list, `# only c\n\n${ofC.publicKey} c\n`);
    // The list lies beside the key file, however that was named.
    expect([...(await readAuthorized(join(folder, 'cluster.key'))).values()]).toEqual(['c']);
    writeFileSync(list, 'nonsense\n');
    await expect(readAuthorized(folder)).rejects.toThrow(`${list}:1: expected a public key and a name, got "nonsense"`);
    chmodSync(list, 0o666);
    await expect(readAuthorized(folder)).rejects.toThrow('others can write');
  });

  test("a copy of the cluster's key is one of a machine, too", async () => {
    const path = await writeKeys(folder);
    const { publicKey } = (await readKeys(folder))!;
    const machine = await findMachineKeys(folder);
    expect(machine).toMatchObject({ path, keys: { publicKey, coordinatorKey: publicKey } });
    expect(await findMachineKeys(join(folder, 'none'))).toBeNull();
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
    ringKey: '',
  } as const;

  test('hears whose key is allowed, and nobody else', async () => {
    const keys = await newKeys('a');
    const machine = newMachineKeys(keys);
    const allowed = new Set([machine.publicKey]);
    await using curve = await Curve.open(keys, (key) => allowed.has(key));
    await using server = await ControlServer.bind('tcp://127.0.0.1:*', 200, curve);
    const refusals: string[] = [];
    server.onRefusal = (reason) => refusals.push(reason);
    const { endpoint } = server;
    await expect(ControlClient.connect(endpoint, 0, 5000)).rejects.toThrow('asks for a key; make one');
    // Knows the public key of the coordinator, and is not in the list: only the handler can tell.
    const stranger = curveClient(newMachineKeys(keys));
    await expect(ControlClient.connect(endpoint, 0, 5000, stranger)).rejects.toThrow('refused the key');
    // Claims an allowed key without its secret half.
    const thief = curveClient({ ...newMachineKeys(keys), publicKey: machine.publicKey });
    await expect(ControlClient.connect(endpoint, 0, 500, thief)).rejects.toThrow();
    expect(curve.refused).toBe(1);
    await expect.poll(() => server.refusedHandshakes).toBeGreaterThanOrEqual(2);
    expect(refusals).toContainEqual(expect.stringContaining('its key is not allowed here'));
    {
      await using client = await ControlClient.connect(endpoint, 0, 5000, curveClient(machine));
      await client.send(hello);
      expect((await server.receive(5000)).message).toEqual(hello);
    }
    allowed.clear();
    await expect(ControlClient.connect(endpoint, 0, 5000, curveClient(machine))).rejects.toThrow('refused the key');
  });
});

describe('a ring with keys', () => {
  async function twoRings() {
    const curves = [await RingCurve.open(), await RingCurve.open()];
    const rings = [await bindRing('tcp://127.0.0.1:*', curves[0]), await bindRing('tcp://127.0.0.1:*', curves[1])];
    const endpoints = rings.map(({ endpoint }) => endpoint);
    const keys = rings.map(({ key }) => key);
    return {
      rings,
      keys,
      join: (rank: number) => rings[rank]!.join({ rank, worldSize: 2, epoch: 0, endpoints, keys, timeoutMs: 5000 }),
      async [Symbol.asyncDispose]() {
        for (const each of [...rings, ...curves]) await each[Symbol.asyncDispose]();
      },
    };
  }

  test('sums, whoever was told of the other first', async () => {
    await using two = await twoRings();
    const first = two.join(0);
    // Rank 0 knocks, and has to wait: rank 1 has not heard of it.
    await new Promise((resolve) => setImmediate(resolve));
    const groups = await Promise.all([first, two.join(1)]);
    const buffers = [Float32Array.of(1, 2, 3), Float32Array.of(10, 20, 30)];
    await Promise.all(groups.map((group, rank) => group.allReduceSum(buffers[rank]!, 'test')));
    expect(buffers.map((buffer) => [...buffer])).toEqual([
      [11, 22, 33],
      [11, 22, 33],
    ]);
    for (const group of groups) await group[Symbol.asyncDispose]();
  });

  test('joins no peer that has no key', async () => {
    await using curve = await RingCurve.open();
    await using ring = await bindRing('tcp://127.0.0.1:*', curve);
    const endpoints = [ring.endpoint, 'tcp://127.0.0.1:1'];
    const joining = () =>
      ring.join({ rank: 0, worldSize: 2, epoch: 0, endpoints, keys: [ring.key, ''], timeoutMs: 500 });
    await expect(joining()).rejects.toThrow('rank 0: rank 1 has no key for frames, and this rank has one');
  });

  test('is closed to strangers, also to one that knows its public key', async () => {
    await using two = await twoRings();
    await using stranger = await RingCurve.open();
    for (const options of [undefined, stranger.clientOf(stranger.publicKey), stranger.clientOf(two.keys[0]!)]) {
      const push = connectPush(two.rings[0]!.endpoint, 300, options);
      await expect(push.send('x')).rejects.toThrow();
      push.close();
    }
  });
});
