/**
 * The command that starts a rank through the system's ssh client: `tpla worker --attached` there, which ends with the
 * connection. Secrets travel over its stdin, never on a command line. Asks for no password: ssh keys have to be set up.
 * Read next: ../commands/worker.ts (the other end).
 */
import { parseSshHost, type ClusterConfig } from '../../config/cluster.ts';
import { invariant } from '../../config/errors.ts';
import type { MachineKeys } from '../../collective/key-files.ts';
import type { Launch } from '../rank-processes.ts';
import { attachmentLine } from './attachment.ts';

export interface SshLaunchOptions {
  readonly rank: number;
  readonly config: ClusterConfig['ranks'][number];
  /** The coordinator's, for a rank that names no model. */
  readonly modelPath: string;
  /** As the other machine reaches it. */
  readonly endpoint: string;
  readonly token: string;
  readonly keys: MachineKeys | undefined;
}

/** Without these ssh may wait for a password or a dead host for ever. */
const sshOptions = ['BatchMode=yes', 'ConnectTimeout=10', 'ServerAliveInterval=5', 'ServerAliveCountMax=3'];

export function sshLaunch({ rank, config, modelPath, endpoint, token, keys }: SshLaunchOptions): Launch {
  const host = parseSshHost(config.host);
  invariant(host !== null, `ranks.${rank}.host: ${config.host} passed the check of the cluster file`);
  const model = config.model === '' ? modelPath : config.model;
  const words = [config.program, 'worker', '--attached', '--join', endpoint, '--rank', String(rank), '--model', model];
  if (keys === undefined) words.push('--allow-no-keys');
  return {
    kind: 'command',
    command: 'ssh',
    args: [
      ...sshOptions.flatMap((option) => ['-o', option]),
      ...(host.port === undefined ? [] : ['-p', host.port]),
      '--',
      host.destination,
      `exec ${words.map(quoted).join(' ')}`,
    ],
    input: attachmentLine({ token, keys: keys ?? null }),
  };
}

/** One word for any POSIX shell. */
function quoted(word: string): string {
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
