/** Ranks that join from outside with `tpla worker`: they serve, wait again, and are refused by name when they do not fit. */
import { closeSync, cpSync, openSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { decodeMessage, encodeMessage } from '../../collective/frame.ts';
import { protocolVersion } from '../../collective/messages.ts';
import { connectDealer, receiveWithin } from '../../collective/zmq.ts';
import { packageVersion } from '../../config/version.ts';
import type { StepResult } from '../../coordinator/ask-ranks.ts';
import { Cluster } from '../../coordinator/cluster.ts';
import { RankAbsent } from '../../coordinator/failures.ts';
import type { ClusterEvent } from '../../coordinator/cluster-events.ts';
import { Supervisor } from '../../coordinator/supervisor.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { copyIdentity } from '../../model/copy-identity.ts';
import { startCluster } from '../helpers/cluster.ts';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';
import { freePort, remoteConfig, startWorker } from '../helpers/remote.ts';

const model = join(goldenFolder, 'stories260K');
let sandbox: Sandbox;
let checkpoint: Checkpoint;
let port: number;
let address: string;
beforeEach(async () => {
  sandbox = new Sandbox();
  checkpoint = await openCheckpoint(model);
  port = await freePort();
  address = `tcp://127.0.0.1:${port}`;
});
afterEach(async () => {
  await checkpoint[Symbol.asyncDispose]();
  expect(sandbox.leftovers()).toEqual([]);
  sandbox[Symbol.dispose]();
});

function step(runner: Pick<Cluster, 'step'>): Promise<StepResult> {
  return runner.step({
    phase: 'prefill',
    sequences: [{ slot: 0, start: 0, tokens: [1, 5, 9] }],
    want: { kind: 'last' },
  });
}

async function localLogits(): Promise<Float32Array> {
  await using local = await startCluster(model, { ranks: 2, context: 256 });
  return (await step(local.cluster)).logits;
}

describe('a worker', () => {
  test('serves what local ranks serve, and is replaced when its process crashes', async () => {
    const events: ClusterEvent[] = [];
    await using worker = startWorker(sandbox, ['--join', address, '--model', model]);
    const lines: string[] = [];
    await using supervisor = await Supervisor.start({
      checkpoint,
      config: remoteConfig({ model, port, hosts: ['local', 'join'] }),
      log: (line) => lines.push(line),
      onEvent: (event) => events.push(event),
    });
    expect(lines).toContain(
      `waiting for rank 1: on its machine run: tpla worker --join ${address} --rank 1 --model ${model}`,
    );
    await worker.said(`rank 1 of 2 for the coordinator at ${address}`);
    const expected = await localLogits();
    expect((await step(supervisor)).logits).toEqual(expected);
    const { pid, host } = supervisor.cluster.ranks[1]!;
    expect(pid).not.toBe(worker.running.child.pid);
    process.kill(pid, 'SIGSEGV');
    await worker.said("the rank's process was ended by SIGSEGV; offering another");
    await expect.poll(() => events.at(-1)?.kind, { timeout: 10_000 }).toBe('recovered');
    expect(events[1]?.text).toMatch(new RegExp(`^rank 1 \\(process ${pid} on ${host}\\): stopped answering`));
    expect((await step(supervisor)).logits).toEqual(expected);
  });

  test('waits again when its coordinator is killed, and serves the next', async () => {
    const file = join(sandbox.folder, 'cache', 'cluster.json');
    cpSync(model, join(sandbox.folder, 'cache', 'model'), { recursive: true });
    writeFileSync(
      file,
      JSON.stringify({
        model,
        ranks: [{ host: 'join' }],
        coordinator: { bind: address },
        cache: { contextTokens: 256 },
      }),
    );
    await using worker = startWorker(sandbox, ['--join', address, '--model', model]);
    const first = sandbox.start(['serve', file, '--listen', '127.0.0.1:0', '--json']);
    await first.printed('"ready":true');
    first.child.kill('SIGKILL');
    await first.finished;
    await worker.said(`waiting for the coordinator at ${address}`, 2);
    const { code, stdout, stderr } = await sandbox.run([
      'run',
      '--config',
      file,
      '--max-tokens',
      '3',
      '--json',
      'Once',
    ]);
    expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
    expect(JSON.parse(stdout)).toMatchObject({ generatedTokens: 3, ranks: 1 });
    await worker.said('the coordinator has stopped');
    worker.running.child.kill('SIGTERM');
    expect((await worker.running.finished).code).toBe(0);
  });

  test('that is frozen is noticed, requests fail by name, and it is taken back', async () => {
    const events: ClusterEvent[] = [];
    await using _ = startWorker(sandbox, ['--join', address, '--model', model, '--rank', '0']);
    await using supervisor = await Supervisor.start({
      checkpoint,
      config: remoteConfig({ model, port, hosts: ['join', 'local'], faults: { rejoinMs: 300 } }),
      log: () => undefined,
      onEvent: (event) => events.push(event),
    });
    const { logits } = await step(supervisor);
    const { pid } = supervisor.cluster.ranks[0]!;
    const frozenAt = performance.now();
    process.kill(pid, 'SIGSTOP');
    await expect.poll(() => events.at(-1)?.kind, { timeout: 10_000, interval: 10 }).toBe('failed');
    expect(events.map(({ kind }) => kind)).toEqual(['started', 'lost', 'lost', 'failed']);
    expect(performance.now() - frozenAt).toBeLessThan(20_000);
    await expect(step(supervisor)).rejects.toThrow(
      /rank 0 .*: no answer in 300 ms .*on its machine run: tpla worker --join/,
    );
    expect(supervisor.health()[0]).toMatchObject({ state: 'lost' });
    process.kill(pid, 'SIGKILL');
    await expect.poll(() => supervisor.state, { timeout: 10_000, interval: 10 }).toBe('ok');
    expect(events.at(-1)?.kind).toBe('recovered');
    expect((await step(supervisor)).logits).toEqual(logits);
  });

  test('that does not come is named, with what to type', async () => {
    const config = remoteConfig({ model, port, hosts: ['local', 'join'], joinSeconds: 1 });
    const starting = Cluster.start({ checkpoint, config, log: () => undefined });
    await expect(starting).rejects.toBeInstanceOf(RankAbsent);
    await expect(starting).rejects.toThrow(
      `rank 1: no answer in 1000 ms while starting; on its machine run: tpla worker --join ${address} --rank 1`,
    );
  });
});

describe('refused', () => {
  const offer = {
    kind: 'offer',
    rank: null,
    worldSize: null,
    pid: 1,
    host: 'h',
    protocol: protocolVersion,
    version: packageVersion,
    token: '',
    ringEndpoint: 'tcp://127.0.0.1:1',
    ringKey: '',
  };

  async function answerTo(message: object): Promise<unknown> {
    const socket = (await connectDealer(address, 10_000)).socket!;
    await socket.send(encodeMessage(message));
    const [packed] = (await receiveWithin(socket, 10_000)) ?? [];
    socket.close();
    return decodeMessage([packed!]).message;
  }

  test('by name, and nothing else changes', async () => {
    const other = join(sandbox.folder, 'cache', 'other');
    cpSync(model, other, { recursive: true });
    changeLastByte(join(other, 'model.safetensors'));
    const lines: string[] = [];
    await using good = startWorker(sandbox, ['--join', address, '--model', model, '--rank', '1']);
    await using cluster = await Cluster.start({
      checkpoint,
      config: remoteConfig({ model, port, hosts: ['local', 'join'] }),
      log: (line) => lines.push(line),
    });
    const { logits } = await step(cluster);
    await using bad = startWorker(sandbox, ['--join', address, '--model', other]);
    const modelIdentity = await copyIdentity(checkpoint);
    const reasons: [object, string][] = [
      [
        { protocol: 999, extra: 1 },
        `version ${packageVersion}, protocol 999; expected ${packageVersion}, protocol ${protocolVersion}; install the same version`,
      ],
      [
        { version: '0.0.9', modelIdentity },
        `it is version 0.0.9, the coordinator ${packageVersion}; install the same version`,
      ],
      [{ worldSize: 4, modelIdentity }, 'its launcher says 4 ranks, the cluster has 2; make them agree'],
      [{ rank: 0, modelIdentity }, 'rank 0 does not join from outside; ranks that do: 1'],
      [{ rank: 1, modelIdentity }, 'rank 1 is taken by another process; leave --rank out to get a free one'],
      [{ modelIdentity }, 'no rank is free; those that join: 1'],
    ];
    for (const [fields, reason] of reasons)
      expect(await answerTo({ ...offer, ...fields })).toEqual({ kind: 'refused', reason });
    await bad.said(`refused by the coordinator at ${address}: its model has identity`);
    expect(lines).toContainEqual(expect.stringMatching(/^refused: process \d+ on .*: its model has identity/));
    expect((await step(cluster)).logits).toEqual(logits);
    await good.said('rank 1 of 2');
  });

  test('a model that is not there, an address that is none, another machine without keys', async () => {
    const cases: [string[], string][] = [
      [['--join', address, '--model', join(sandbox.folder, 'none')], 'none'],
      [['--join', 'example:7070'], '--join: expected tcp://HOST:PORT, got "example:7070"'],
      [[], '--join: missing; expected tcp://HOST:PORT of the coordinator, or --from-env'],
      [
        ['--join', 'tcp://192.0.2.1:7070', '--model', model],
        '--keys: tcp://192.0.2.1:7070 is another machine and there is no key file',
      ],
      [['--from-env'], '--from-env: expected one of OMPI_COMM_WORLD_RANK'],
    ];
    const ended = await Promise.all(cases.map(([args]) => sandbox.run(['worker', ...args])));
    for (const [i, [, text]] of cases.entries()) {
      expect(ended[i]!.stderr).toContain(text);
      expect(ended[i]!.code).toBe(2);
    }
  });
});

/** The same sizes and names, other weights. */
function changeLastByte(file: string): void {
  const { size } = statSync(file);
  const descriptor = openSync(file, 'r+');
  writeSync(descriptor, Buffer.from([0x5a]), 0, 1, size - 1);
  closeSync(descriptor);
}
