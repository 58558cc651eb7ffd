/** Collectives between real processes: the conformance suite, a rank that is killed, and what is left behind. */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { RankProcesses } from '../helpers/collective-processes.ts';
import type { Transport } from '../helpers/collective-processes.ts';
import { describeProcessGroup, expectSameBits, onAll, sumOf, valuesOf } from '../suites/process-group.ts';

const transports: Transport[] = process.platform === 'win32' ? ['auto'] : ['shm', 'two levels', 'auto'];

describe.each(transports)('real processes, %s', (transport) => {
  const processes = new RankProcesses(transport);
  afterAll(() => processes[Symbol.asyncDispose]());
  describeProcessGroup('the suite', (worldSize, timeoutMs) => processes.make(worldSize, timeoutMs));
});

describe.each(transports)('a rank that is killed, %s', (transport) => {
  it('is named by the others, and they go on with its successor', async () => {
    await using processes = new RankProcesses(transport);
    const made = await processes.make(3, 300);
    await onAll(made.groups, (group) => group.barrier('before'));
    await processes.kill(1);
    const survivors = made.groups.filter(({ rank }) => rank !== 1);
    const results = await Promise.allSettled(
      survivors.map((group) => group.allReduceSum(new Float32Array(576), 'layer 3, attention')),
    );
    for (const [k, result] of results.entries()) {
      expect(result.status === 'rejected' && String(result.reason)).toMatch(
        new RegExp(
          `^PeerError: rank ${survivors[k]!.rank}: .*rank 1 .*for all-reduce #2 \\(layer 3, attention, 2304 B\\)`,
        ),
      );
    }
    await Promise.all(survivors.map((group) => group[Symbol.asyncDispose]()));

    await using again = await processes.make(3, 10_000);
    const parts = again.groups.map(({ rank }) => valuesOf(1000, rank, 1));
    await onAll(again.groups, async (group) => {
      const buffer = parts[group.rank]!.slice();
      await group.allReduceSum(buffer, 'after');
      expectSameBits(buffer, sumOf(parts, again.hosts));
    });
  });
});

it.runIf(process.platform !== 'win32')('a leader that is killed is named on all hosts, and nobody hangs', async () => {
  await using processes = new RankProcesses('two levels');
  const made = await processes.make(5, 300, 'aabbb'.split(''));
  await onAll(made.groups, (group) => group.barrier('before'));
  await processes.kill(2);
  const survivors = made.groups.filter(({ rank }) => rank !== 2);
  const results = await Promise.allSettled(
    survivors.map((group) => group.allReduceSum(new Float32Array(576), 'layer 3, attention')),
  );
  for (const [k, result] of results.entries()) {
    expect(result.status === 'rejected' && String(result.reason)).toMatch(
      new RegExp(
        `^PeerError: rank ${survivors[k]!.rank}: .*rank 2 \\(b\\).* for all-reduce #2 \\(layer 3, attention, 2304 B\\)`,
      ),
    );
  }
  await Promise.all(survivors.map((group) => group[Symbol.asyncDispose]()));
});

it.runIf(process.platform === 'linux')(
  'leaves no shared memory and no socket behind, although a rank was killed',
  async () => {
    const processes = new RankProcesses('shm');
    const made = await processes.make(2, 10_000);
    const hash = createHash('sha256').update(made.runId).digest('hex').slice(0, 12);
    expect(readdirSync('/dev/shm').filter((name) => name.includes(hash))).toEqual([]);
    const folder = dirname(made.controlEndpoint.slice('ipc://'.length));
    const files = ['control', ...made.groups.map((group) => `rank-${group.rank}-${group.pid}`)];
    expect(readdirSync(folder).sort()).toEqual(files.map((name) => `${name}.sock`).sort());
    await processes.kill(1);
    await made.groups[0]![Symbol.asyncDispose]();
    await processes[Symbol.asyncDispose]();
    expect(existsSync(folder)).toBe(false);
  },
);
