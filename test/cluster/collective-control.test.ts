/** Control sockets between real processes: a coordinator that is killed, and a rank's last message. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { ControlServer } from '../../collective/control.ts';
import { ControlClient } from '../../collective/control-client.ts';

const script = fileURLToPath(new URL('../helpers/control-peer.mjs', import.meta.url));

it('tells the rank that its coordinator was killed; the rank removes what that left', async () => {
  const coordinator = fork(script, ['server']);
  const [endpoint] = await once(coordinator, 'message');
  const client = await ControlClient.connect(String(endpoint), 3);
  const waiting = expect(client.receive()).rejects.toThrow(`rank 3: the coordinator at ${endpoint} is gone`);
  coordinator.kill('SIGKILL');
  await waiting;
  const folder = dirname(String(endpoint).slice('ipc://'.length));
  expect(existsSync(folder)).toBe(true);
  await client[Symbol.asyncDispose]();
  expect(existsSync(folder)).toBe(false);
});

it.each(['last-word', 'last-word-exit'])('receives what a rank says before it ends (%s)', async (mode) => {
  await using server = await ControlServer.bind('ipc');
  const rank = fork(script, [mode, server.endpoint]);
  const exit = once(rank, 'exit');
  expect((await server.receive(10_000)).message.kind).toBe('hello');
  expect((await server.receive(10_000)).message).toMatchObject({ kind: 'failed', message: 'the last word' });
  expect(await exit).toEqual([mode === 'last-word' ? 0 : 3, null]);
});
