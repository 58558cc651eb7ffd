/** Chooses what carries the sums among the ranks of one setup. The only place that knows all transports. */
import { ConfigError } from '../config/errors.ts';
import type { ProcessGroup } from './group.ts';
import type { Tamper } from './mailbox.ts';
import type { Setup } from './setup.ts';
import { MpiGroup } from './mpi-group.ts';
import { openMpi } from './mpi.ts';
import { createSharedMemoryGroup } from './shared-memory.ts';
import type { RingBinding } from './zeromq-group.ts';

export interface JoinedGroup extends AsyncDisposable {
  readonly group: ProcessGroup;
  /** For people: 'zeromq', 'shared memory', 'mpi', 'none'. */
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
 * auto: shared memory where all ranks are on one host and can map it, otherwise ZeroMQ.
 * @throws ConfigError for a transport that this machine or version does not have, PeerError when a rank does not answer
 */
export async function createGroup(ring: RingBinding, setup: Setup, controls: GroupControls = {}): Promise<JoinedGroup> {
  const { rank, worldSize, epoch, ringEndpoints: endpoints, ringKeys: keys, options } = setup;
  const { transport, timeoutMs } = options;
  if (transport === 'mpi') {
    const group = new MpiGroup(openMpi(), rank, worldSize);
    return { group, transport: 'mpi', [Symbol.asyncDispose]: () => group[Symbol.asyncDispose]() };
  }
  const zeroMq = await ring.join({ rank, worldSize, epoch, endpoints, keys, timeoutMs, ...controls });
  const alone: JoinedGroup = {
    group: zeroMq,
    transport: worldSize === 1 ? 'none' : 'zeromq',
    [Symbol.asyncDispose]: () => zeroMq[Symbol.asyncDispose](),
  };
  if (worldSize === 1 || transport === 'zeromq' || (transport === 'auto' && !sameHost(endpoints))) return alone;
  const giveUp = (): void => void zeroMq[Symbol.asyncDispose]();
  controls.signal?.addEventListener('abort', giveUp);
  try {
    return await onSharedMemory(zeroMq, setup);
  } catch (error) {
    // Every rank is told of the refusal, so all fall back together.
    if (transport === 'auto' && error instanceof ConfigError) return alone;
    await zeroMq[Symbol.asyncDispose]();
    throw error;
  } finally {
    controls.signal?.removeEventListener('abort', giveUp);
  }
}

async function onSharedMemory(bootstrap: ProcessGroup, setup: Setup): Promise<JoinedGroup> {
  const { rank, worldSize, runId, epoch, options } = setup;
  const { timeoutMs } = options;
  const group = await createSharedMemoryGroup({ rank, worldSize, runId, epoch, timeoutMs, bootstrap });
  return {
    group,
    transport: 'shared memory',
    async [Symbol.asyncDispose]() {
      await group[Symbol.asyncDispose]();
      await bootstrap[Symbol.asyncDispose]();
    },
  };
}

/** Socket files are reachable on one host only. */
function sameHost(endpoints: readonly string[]): boolean {
  return endpoints.every((endpoint) => endpoint.startsWith('ipc://'));
}
