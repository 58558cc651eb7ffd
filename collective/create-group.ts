/** Chooses what carries the sums among the ranks of one setup. The only place that knows all transports. */
import { ConfigError } from '../config/errors.ts';
import type { ProcessGroup } from './group.ts';
import type { Setup } from './messages.ts';
import type { RingBinding } from './zeromq-group.ts';

export interface JoinedGroup {
  readonly group: ProcessGroup & AsyncDisposable;
  /** For people: 'zeromq', 'shared memory', 'none'. */
  readonly transport: string;
}

/** @throws ConfigError for a transport that this machine or version does not have, PeerError when a rank does not answer */
export async function createGroup(ring: RingBinding, setup: Setup): Promise<JoinedGroup> {
  const { rank, worldSize, epoch, ringEndpoints: endpoints, options } = setup;
  if (options.transport === 'mpi')
    throw new ConfigError('transport: mpi is not available in this version; use auto, shm or zeromq');
  const group = await ring.join({ rank, worldSize, epoch, endpoints, timeoutMs: options.timeoutMs });
  return { group, transport: worldSize === 1 ? 'none' : 'zeromq' };
}
