/** From the hosts of a cluster file to what is started for each rank. Read next: ../rank-processes.ts. */
import type { ClusterConfig } from '../../config/cluster.ts';
import type { MachineKeys } from '../../collective/key-files.ts';
import type { Launch } from '../rank-processes.ts';
import type { Reduced } from './reduced.ts';
import { sshLaunch } from './ssh-launch.ts';

/** @returns by rank */
export function launchesOf(
  {
    config,
    checkpoint,
    reduced,
  }: {
    readonly config: ClusterConfig;
    readonly checkpoint: { readonly path: string };
    readonly reduced?: Reduced | undefined;
  },
  run: { readonly endpoint: string; readonly token: string; readonly keys: MachineKeys | undefined },
): Launch[] {
  return config.ranks.map((each, rank): Launch => {
    if (each.host === 'local') return { kind: 'local' };
    if (each.host === 'join') return { kind: 'join' };
    return sshLaunch({ ...run, rank: reduced?.numbers[rank] ?? rank, config: each, modelPath: checkpoint.path });
  });
}
