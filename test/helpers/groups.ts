/** Groups of several ranks inside the test process, for suites/process-group.ts. */
import { ranksBeside } from '../../collective/host-ranks.ts';
import { createLocalGroups } from '../../collective/local-group.ts';
import { createSharedMemoryGroup, mapSegment } from '../../collective/shared-memory.ts';
import { TwoLevelGroup } from '../../collective/two-level-group.ts';
import { bindRing } from '../../collective/zeromq-group.ts';
import type { ZeroMqAlgorithm } from '../../collective/exchange.ts';
import type { ZeroMqGroup } from '../../collective/zeromq-group.ts';
import { hostsBySize } from './collective-processes.ts';
import type { MadeGroups } from '../suites/process-group.ts';

let runs = 0;

export interface MadeZeroMq extends MadeGroups {
  readonly groups: readonly ZeroMqGroup[];
}

export interface MadeTwoLevels extends MadeGroups {
  readonly groups: readonly TwoLevelGroup[];
  readonly hosts: readonly string[];
}

export async function makeLocal(worldSize: number, timeoutMs: number): Promise<MadeGroups> {
  const groups = createLocalGroups(worldSize, timeoutMs);
  return { groups, [Symbol.asyncDispose]: () => disposeAll(groups) };
}

export async function makeZeroMq(
  worldSize: number,
  timeoutMs: number,
  algorithm: ZeroMqAlgorithm,
  endpoint = 'ipc',
): Promise<MadeZeroMq> {
  const bindings = await Promise.all(Array.from({ length: worldSize }, () => bindRing(endpoint)));
  const endpoints = bindings.map((binding) => binding.endpoint);
  const groups = await Promise.all(
    bindings.map((binding, rank) => binding.join({ rank, worldSize, epoch: 1, endpoints, timeoutMs, algorithm })),
  );
  return {
    groups,
    async [Symbol.asyncDispose]() {
      await disposeAll(groups);
      await disposeAll(bindings);
    },
  };
}

export async function makeSharedMemory(worldSize: number, timeoutMs: number): Promise<MadeGroups> {
  const runId = `test-${process.pid}-${runs++}`;
  const groups = await Promise.all(
    createLocalGroups(worldSize).map((bootstrap, rank) =>
      createSharedMemoryGroup({ rank, worldSize, runId, epoch: 1, timeoutMs, bootstrap }),
    ),
  );
  return { groups, [Symbol.asyncDispose]: () => disposeAll(groups) };
}

export async function makeTwoLevels(
  worldSize: number,
  timeoutMs: number,
  algorithm: ZeroMqAlgorithm = 'auto',
  hosts = (hostsBySize[worldSize] ?? '').split(''),
): Promise<MadeTwoLevels> {
  const flat = await makeZeroMq(worldSize, timeoutMs, algorithm, 'tcp://127.0.0.1:*');
  const runId = `test-${process.pid}-${runs++}`;
  const groups = await Promise.all(
    flat.groups.map(async (bootstrap, rank) => {
      const segment = await mapSegment({ rank, worldSize, runId, epoch: 1, bootstrap }, ranksBeside(rank, hosts));
      return new TwoLevelGroup({ hosts, timeoutMs, mailbox: bootstrap.mailbox, segment, algorithm });
    }),
  );
  return {
    groups,
    hosts,
    async [Symbol.asyncDispose]() {
      await disposeAll(groups);
      await flat[Symbol.asyncDispose]();
    },
  };
}

async function disposeAll(things: readonly AsyncDisposable[]): Promise<void> {
  await Promise.all(things.map((thing) => thing[Symbol.asyncDispose]()));
}
