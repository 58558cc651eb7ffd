/** Groups of several ranks inside the test process, for suites/process-group.ts. */
import { createLocalGroups } from '../../collective/local-group.ts';
import { createSharedMemoryGroup } from '../../collective/shared-memory.ts';
import { bindRing } from '../../collective/zeromq-group.ts';
import type { ZeroMqAlgorithm, ZeroMqGroup } from '../../collective/zeromq-group.ts';
import type { MadeGroups } from '../suites/process-group.ts';

let runs = 0;

export async function makeLocal(worldSize: number, timeoutMs: number): Promise<MadeGroups> {
  const groups = createLocalGroups(worldSize, timeoutMs);
  return { groups, [Symbol.asyncDispose]: () => disposeAll(groups) };
}

export async function makeZeroMq(
  worldSize: number,
  timeoutMs: number,
  algorithm: ZeroMqAlgorithm,
  endpoint = 'ipc',
): Promise<MadeGroups & { groups: ZeroMqGroup[] }> {
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

async function disposeAll(things: readonly AsyncDisposable[]): Promise<void> {
  await Promise.all(things.map((thing) => thing[Symbol.asyncDispose]()));
}
