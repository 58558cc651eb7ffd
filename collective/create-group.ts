/** Chooses what carries the sums among the ranks of one setup. The only place that knows all transports. */
import { ConfigError } from '../config/errors.ts';
import type { ProcessGroup } from './group.ts';
import { hostRanksOf, type HostRanks } from './host-ranks.ts';
import type { Tamper } from './mailbox-settings.ts';
import type { Setup } from './setup.ts';
import { MpiGroup } from './mpi-group.ts';
import { openMpi } from './mpi.ts';
import { SharedMemoryGroup } from './shared-memory-group.ts';
import { mapSegment } from './shared-memory.ts';
import { TwoLevelGroup } from './two-level-group.ts';
import type { RingBinding, ZeroMqGroup } from './zeromq-group.ts';

export interface JoinedGroup extends AsyncDisposable {
  readonly group: ProcessGroup;
  /** For people: 'zeromq', 'shared memory', 'shared memory, zeromq between hosts', 'mpi', 'none'. */
  readonly transport: string;
}

/** What a rank may do to a group from outside. */
export interface GroupControls {
  /** Aborted: the wait for the other ranks ends at once, with a PeerError. */
  readonly signal?: AbortSignal;
  /** Fault drills only. */
  readonly tamper?: Tamper | undefined;
}

/**
 * auto: shared memory where all ranks are on one host, two levels where some are, ZeroMQ otherwise, or where a rank cannot
 * map the memory.
 * @throws ConfigError for a transport that this machine or version does not have, PeerError when a rank does not answer
 */
export async function createGroup(ring: RingBinding, setup: Setup, controls: GroupControls = {}): Promise<JoinedGroup> {
  const { rank, worldSize, epoch, ringEndpoints: endpoints, ringKeys: keys, options } = setup;
  const { transport, timeoutMs } = options;
  if (transport === 'mpi') {
    const group = new MpiGroup(openMpi(), rank, worldSize);
    return { group, transport: 'mpi', [Symbol.asyncDispose]: () => group[Symbol.asyncDispose]() };
  }
  const isOneHost = hostRanksOf(setup.hosts).ranks.length === 1;
  const zeroMq = await ring.join({ rank, worldSize, epoch, endpoints, keys, timeoutMs, isOneHost, ...controls });
  const alone: JoinedGroup = {
    group: zeroMq,
    transport: worldSize === 1 ? 'none' : 'zeromq',
    [Symbol.asyncDispose]: () => zeroMq[Symbol.asyncDispose](),
  };
  const placement = hostRanksOf(transport === 'shm' ? setup.hosts.map(() => 'one') : setup.hosts);
  const sharesMemory = placement.ranks.some(({ length }) => length > 1);
  const giveUp = (): void => void zeroMq[Symbol.asyncDispose]();
  controls.signal?.addEventListener('abort', giveUp);
  try {
    if (transport === 'zeromq' || !sharesMemory) return await chosen(alone, zeroMq);
    return await onSharedMemory(zeroMq, setup, placement);
  } catch (error) {
    // Every rank is told of the refusal, so all fall back together.
    if (transport === 'auto' && error instanceof ConfigError) return await chosen(alone, zeroMq);
    await zeroMq[Symbol.asyncDispose]();
    throw error;
  } finally {
    controls.signal?.removeEventListener('abort', giveUp);
  }
}

/** Lets the ranks measure how to sum, before anything depends on it. */
async function chosen(joined: JoinedGroup, group: ZeroMqGroup | TwoLevelGroup): Promise<JoinedGroup> {
  try {
    await group.chooseAlgorithms();
  } catch (error) {
    await joined[Symbol.asyncDispose]();
    throw error;
  }
  return joined;
}

async function onSharedMemory(bootstrap: ZeroMqGroup, setup: Setup, placement: HostRanks): Promise<JoinedGroup> {
  const { rank, worldSize, runId, epoch, hosts, options } = setup;
  const { timeoutMs } = options;
  const isOneHost = placement.ranks.length === 1;
  const ranks = placement.ranks[placement.hostOf[rank] ?? 0] ?? [];
  const segment = await mapSegment({ rank, worldSize, runId, epoch, bootstrap }, ranks);
  const joined = (group: ProcessGroup & AsyncDisposable, kind: string): JoinedGroup => ({
    group,
    transport: kind,
    async [Symbol.asyncDispose]() {
      await group[Symbol.asyncDispose]();
      await bootstrap[Symbol.asyncDispose]();
    },
  });
  if (isOneHost) return joined(new SharedMemoryGroup(rank, worldSize, timeoutMs, segment), 'shared memory');
  const group = new TwoLevelGroup({ hosts, timeoutMs, mailbox: bootstrap.mailbox, segment });
  return await chosen(joined(group, 'shared memory, zeromq between hosts'), group);
}
