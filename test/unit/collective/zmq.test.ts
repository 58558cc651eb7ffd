import { existsSync } from 'node:fs';
import { dirname } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { PeerError } from '../../../config/errors.ts';
import { ringEndpointBeside } from '../../../collective/endpoint.ts';
import { protocolVersion } from '../../../collective/messages.ts';
import type { Failed, ToCoordinator } from '../../../collective/messages.ts';
import { ControlServer } from '../../../collective/control.ts';
import { ControlClient } from '../../../collective/control-client.ts';

afterEach(() => void vi.useRealTimers());

function hello(rank: number, pid = 1000 + rank): ToCoordinator {
  return {
    kind: 'hello',
    rank,
    pid,
    host: 'here',
    protocol: protocolVersion,
    version: '0',
    token: 't',
    ringEndpoint: 'r',
    ringKey: '',
  };
}

function failed(rank: number, message: string): Failed {
  return { kind: 'failed', rank, epoch: 0, id: null, error: 'PeerError', message };
}

describe.each(['ipc', 'tcp://127.0.0.1:*'])('control sockets over %s', (address) => {
  it('carries messages and payloads both ways', async () => {
    await using server = await ControlServer.bind(address);
    await using client = await ControlClient.connect(server.endpoint, 1);
    await client.send(hello(1));
    expect((await server.receive()).message).toEqual(hello(1));

    const payload = Float32Array.from({ length: 1000 }, (_, i) => Math.sin(i));
    const sent = server.send(1, { kind: 'collectiveCheck', id: 7, floats: 3, count: 2 }, payload);
    payload.fill(0);
    await sent;
    const received = await client.receive(5000);
    expect(received.message).toEqual({ kind: 'collectiveCheck', id: 7, floats: 3, count: 2 });
    expect(received.payload).toEqual(Float32Array.from({ length: 1000 }, (_, i) => Math.sin(i)));
  });

  it('sends many messages at once in order', async () => {
    await using server = await ControlServer.bind(address);
    await using client = await ControlClient.connect(server.endpoint, 0);
    await Promise.all(
      [hello(0), ...Array.from({ length: 50 }, (_, i) => failed(0, `${i}`))].map((m) => client.send(m)),
    );
    await server.receive();
    for (let i = 0; i < 50; i++) expect((await server.receive()).message).toMatchObject({ message: `${i}` });
  });

  it('tells the rank when the coordinator is gone, after what it still had to say', async () => {
    const server = await ControlServer.bind(address);
    await using client = await ControlClient.connect(server.endpoint, 2);
    await client.send(hello(2));
    await server.receive();
    const request = { kind: 'collectiveCheck', id: 7, floats: 3, count: 2 } as const;
    await server.send(2, request);
    await server.send(2, { kind: 'stop' });
    await server[Symbol.asyncDispose]();
    expect((await client.receive(5000)).message).toEqual(request);
    expect((await client.receive(5000)).message).toEqual({ kind: 'stop' });
    await expect(client.receive(5000)).rejects.toThrow(`rank 2: the coordinator at ${server.endpoint} is gone`);
    await expect(client.send(hello(2))).rejects.toThrow('is gone');
  });
});

describe('ControlServer', () => {
  it('refuses a second process that claims a rank, until the first is forgotten', async () => {
    await using server = await ControlServer.bind('ipc');
    await using first = await ControlClient.connect(server.endpoint, 0);
    await using second = await ControlClient.connect(server.endpoint, 0);
    await first.send(hello(0, 11));
    await server.receive();
    await second.send(hello(0, 12));
    await second.send(failed(0, 'from the second'));
    await first.send(failed(0, 'from the first'));
    expect((await server.receive()).message).toMatchObject({ message: 'from the first' });
    await expect(server.receive(0)).rejects.toThrow(PeerError);
    expect(server.refused).toBe(2);
    expect(server.lastRefusal).toBe('failed of rank 0 from a process that has not said hello');
    server.forget(0);
    await second.send(hello(0, 12));
    expect((await server.receive()).message).toEqual(hello(0, 12));
  });

  it('tells a process that is dismissed to stop, and takes another, or the same again', async () => {
    await using server = await ControlServer.bind('ipc');
    await using first = await ControlClient.connect(server.endpoint, 0);
    await first.send(hello(0, 11));
    await server.receive();
    server.dismiss(0);
    server.dismiss(0);
    expect((await first.receive(5000)).message).toEqual({ kind: 'stop' });
    await first.send(hello(0, 11));
    expect((await server.receive()).message).toEqual(hello(0, 11));
  });

  it('drops and counts what no schema accepts', async () => {
    await using server = await ControlServer.bind('ipc');
    await using client = await ControlClient.connect(server.endpoint, 0);
    await client.send(hello(-1));
    await client.send(hello(0));
    expect((await server.receive()).message).toEqual(hello(0));
    expect(server.refused).toBe(1);
    expect(server.lastRefusal).toMatch(/Too small.*\n.*at rank/);
  });

  it('names a rank that it cannot reach', async () => {
    await using server = await ControlServer.bind('ipc');
    await expect(server.send(3, { kind: 'stop' })).rejects.toThrow('rank 3 has not said hello; cannot send it stop');
  });

  it('leaves a deadline and a close to the caller as PeerError', async () => {
    const server = await ControlServer.bind('ipc');
    await expect(server.receive(5)).rejects.toThrow(`no message from any rank in 5 ms at ${server.endpoint}`);
    const waiting = server.receive();
    const closed = expect(waiting).rejects.toThrow('is closed');
    await server[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
    await closed;
    await expect(server.receive()).rejects.toThrow('is closed');
  });

  it('leaves no file behind', async () => {
    const server = await ControlServer.bind('ipc');
    const folder = dirname(server.endpoint.slice('ipc://'.length));
    expect(await ringEndpointBeside(server.endpoint, 2)).toBe(`ipc://${folder}/rank-2-${process.pid}.sock`);
    expect(existsSync(folder)).toBe(true);
    await server[Symbol.asyncDispose]();
    expect(existsSync(folder)).toBe(false);
  });

  it('refuses an address that it cannot bind', async () => {
    await using server = await ControlServer.bind('tcp://127.0.0.1:*');
    await expect(ControlServer.bind(server.endpoint)).rejects.toThrow(`cannot bind ${server.endpoint}`);
  });
});

describe('ControlClient', () => {
  it('delivers what arrived before the coordinator left, however late it asks', async () => {
    const server = await ControlServer.bind('ipc');
    await using client = await ControlClient.connect(server.endpoint, 2);
    await client.send(hello(2));
    await server.receive();
    vi.useFakeTimers({ toFake: ['setTimeout'] });
    await server.send(2, { kind: 'stop' });
    await server[Symbol.asyncDispose]();
    // A send is refused from the moment that the loss is known.
    while (
      await client.send(hello(2)).then(
        () => true,
        () => false,
      )
    )
      await new Promise((resolve) => setImmediate(resolve));
    vi.advanceTimersByTime(1000); // by now a receive that waits would have been ended
    vi.useRealTimers();
    expect((await client.receive(5000)).message).toEqual({ kind: 'stop' });
    await expect(client.receive(5000)).rejects.toThrow('is gone');
  });

  it('gives up on an absent coordinator', async () => {
    await expect(ControlClient.connect('tcp://127.0.0.1:1', 4, 20)).rejects.toThrow(
      'rank 4: no coordinator at tcp://127.0.0.1:1 in 20 ms',
    );
  });

  it('names what it cannot understand', async () => {
    await using server = await ControlServer.bind('ipc');
    await using client = await ControlClient.connect(server.endpoint, 4);
    await client.send(hello(4));
    await server.receive();
    await server.send(4, { kind: 'collectiveCheck', id: -1, floats: 3, count: 2 });
    await expect(client.receive(5000)).rejects.toThrow(/^rank 4: bad message from the coordinator: .*\n.*at id/);
  });

  it('names the deadline', async () => {
    await using server = await ControlServer.bind('ipc');
    await using client = await ControlClient.connect(server.endpoint, 4);
    await expect(client.receive(5)).rejects.toThrow('rank 4: nothing from the coordinator in 5 ms');
  });
});
