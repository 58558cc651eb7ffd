import { describe, expect, it } from 'vitest';
import { encodeCollective } from '../../../collective/frame.ts';
import { connectPush } from '../../../collective/zmq.ts';
import { bindRing } from '../../../collective/zeromq-group.ts';
import { makeZeroMq } from '../../helpers/groups.ts';
import { describeProcessGroup, expectSameBits, onAll, sumOf, valuesOf } from '../../suites/process-group.ts';

describeProcessGroup('ZeroMQ ring', (worldSize, timeoutMs) => makeZeroMq(worldSize, timeoutMs, 'ring'));
describeProcessGroup('ZeroMQ direct', (worldSize, timeoutMs) => makeZeroMq(worldSize, timeoutMs, 'direct'));
describeProcessGroup('ZeroMQ scatter', (worldSize, timeoutMs) => makeZeroMq(worldSize, timeoutMs, 'scatter'));
describeProcessGroup('ZeroMQ auto over tcp', (worldSize, timeoutMs) =>
  makeZeroMq(worldSize, timeoutMs, 'auto', 'tcp://127.0.0.1:*'),
);

describe('ZeroMQ group', () => {
  it('sends around the ring what its cost line says', async () => {
    await using made = await makeZeroMq(3, 10_000, 'ring');
    await onAll(made.groups, (group) => group.allReduceSum(new Float32Array(900), 'x'));
    for (const { stats } of made.groups) {
      expect(stats).toMatchObject({ operations: 1, bytesSent: 4 * 4 * 300, bytesReceived: 4 * 4 * 300 });
      expect(stats.waitMs).toBeGreaterThan(0);
    }
  });

  it('sends directly what its cost line says', async () => {
    await using made = await makeZeroMq(3, 10_000, 'direct');
    await onAll(made.groups, (group) => group.allReduceSum(new Float32Array(900), 'x'));
    for (const { stats } of made.groups) expect(stats).toMatchObject({ bytesSent: 7200, bytesReceived: 7200 });
  });

  it.each([
    ['f16', 2 * 1800, 2 * 4 * 300],
    ['q8_0', 2 * (900 + 2 * 29), 2 * 2 * (300 + 2 * 10)],
  ] as const)('sends in %s what its cost line says', async (payload, direct, scattered) => {
    for (const [algorithm, bytes] of [
      ['direct', direct],
      ['scatter', scattered],
    ] as const) {
      await using made = await makeZeroMq(3, 10_000, algorithm);
      await onAll(made.groups, (group) => group.allReduceSum(new Float32Array(900), 'x', payload));
      for (const { stats } of made.groups) expect(stats).toMatchObject({ bytesSent: bytes, bytesReceived: bytes });
    }
  });

  it('sends float32 between ranks of one host, whatever is asked for', async () => {
    const rings = [await bindRing('ipc'), await bindRing('ipc')];
    const endpoints = rings.map(({ endpoint }) => endpoint);
    const settings = { worldSize: 2, epoch: 1, endpoints, timeoutMs: 10_000, isOneHost: true };
    const groups = await Promise.all(rings.map((ring, rank) => ring.join({ ...settings, rank })));
    const parts = groups.map(({ rank }) => valuesOf(1000, rank, 1));
    await onAll(groups, async (group) => {
      const buffer = parts[group.rank]!.slice();
      await group.allReduceSum(buffer, 'x', 'q8_0');
      expectSameBits(buffer, sumOf(parts));
    });
    for (const each of [...groups, ...rings]) await each[Symbol.asyncDispose]();
  });

  it('refuses values that halves cannot carry, by name', async () => {
    await using made = await makeZeroMq(2, 300, 'direct');
    const sum = made.groups[0]!.allReduceSum(Float32Array.of(1, 70_000), 'x', 'f16');
    await expect(sum).rejects.toThrow(
      "collective.payload: f16 carries values up to 65504, and this model's sums have larger ones; use f32 or q8_0",
    );
  });

  it('says what carries a sum', async () => {
    await using one = await makeZeroMq(1, 1000, 'auto');
    await using two = await makeZeroMq(2, 1000, 'auto');
    expect(one.groups[0]!.transportOf(576)).toBe('none');
    expect(two.groups[0]!.transportOf(576)).toBe('zeromq direct');
    expect(two.groups[0]!.transportOf(100_000)).toBe('zeromq ring');
  });

  it('cuts transfers that are longer than a frame', async () => {
    await using made = await makeZeroMq(2, 20_000, 'ring');
    const length = 2 * 1024 * 1024 + 77_777;
    const parts = made.groups.map(({ rank }) => valuesOf(length, rank, 5));
    await onAll(made.groups, async (group) => {
      const buffer = parts[group.rank]!.slice();
      await group.allReduceSum(buffer, 'long');
      expectSameBits(buffer, sumOf(parts));
    });
  });

  it('drops and counts what strangers send', async () => {
    await using bindings = await bindTwo();
    const { endpoints, join } = bindings;
    const [first, second] = await Promise.all([join(0, 7, 10_000), join(1, 7, 10_000)]);
    const stranger = connectPush(endpoints[0]!, 1000);
    const header = {
      operation: 'barrier',
      epoch: 7,
      groupTag: 1,
      sequence: 1,
      source: 1,
      step: 0,
      total: 0,
      offset: 0,
    } as const;
    await stranger.send(Buffer.from('GET / HTTP/1.1'));
    await stranger.send(encodeCollective({ ...header, epoch: 6 }, new Float32Array(0)));
    await stranger.send(encodeCollective(header, new Float32Array(0)));
    await stranger.send([Buffer.alloc(0), Buffer.alloc(3)]);
    // Nothing arrives for the barrier but the stranger's frames; the second rank comes when they have been judged.
    const waiting = first.barrier('among ourselves');
    while (first.refused < 4) await new Promise((resolve) => setImmediate(resolve));
    await Promise.all([waiting, second.barrier('among ourselves')]);
    expect(first.refused).toBe(4);
    stranger.close();
    await first[Symbol.asyncDispose]();
    await second[Symbol.asyncDispose]();
  });

  it('names the rank that does not answer the handshake', async () => {
    await using bindings = await bindTwo();
    await expect(bindings.join(0, 1, 50)).rejects.toThrow(
      'rank 0: nothing from rank 1 for hello #0 (handshake, 0 B) in 50 ms',
    );
  });

  it('names the rank that it cannot reach', async () => {
    await using ring = await bindRing('ipc');
    const endpoints = [ring.endpoint, 'ipc:///nowhere/at/all.sock'];
    await expect(ring.join({ rank: 0, worldSize: 2, epoch: 1, endpoints, timeoutMs: 50 })).rejects.toThrow(
      'rank 0: frame to rank 1 (ipc:///nowhere/at/all.sock) for hello #0 (handshake, 0 B): not taken in 50 ms',
    );
  });

  it('joins the next epoch although a peer is told of it first', async () => {
    await using bindings = await bindTwo();
    const { join } = bindings;
    const [first, second] = await Promise.all([join(0, 1, 10_000), join(1, 1, 10_000)]);
    // Rank 0 still waits in epoch 1 and receives the handshake of epoch 2 there.
    const stuck = expect(first.allReduceSum(new Float32Array(4), 'old')).rejects.toThrow('the group was closed');
    await second[Symbol.asyncDispose]();
    const secondAgain = join(1, 2, 10_000);
    await new Promise((resolve) => setImmediate(resolve));
    await first[Symbol.asyncDispose]();
    await stuck;
    const groups = await Promise.all([join(0, 2, 10_000), secondAgain]);
    await onAll(groups, async (group) => {
      const buffer = Float32Array.of(group.rank + 1);
      await group.allReduceSum(buffer, 'new');
      expect(buffer[0]).toBe(3);
    });
    for (const group of groups) await group[Symbol.asyncDispose]();
  });
});

async function bindTwo() {
  const rings = [await bindRing('ipc'), await bindRing('ipc')];
  const endpoints = rings.map((ring) => ring.endpoint);
  return {
    endpoints,
    join: (rank: number, epoch: number, timeoutMs: number) =>
      rings[rank]!.join({ rank, worldSize: 2, epoch, endpoints, timeoutMs }),
    async [Symbol.asyncDispose]() {
      for (const ring of rings) await ring[Symbol.asyncDispose]();
    },
  };
}
