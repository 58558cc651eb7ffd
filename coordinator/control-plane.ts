/**
 * What a cluster needs before its first rank: the control socket, the keys that guard it, the secrets of the run. Made
 * and disposed of together. Read next: cluster.ts, remote/control-address.ts.
 */
import { randomBytes } from 'node:crypto';
import type { ClusterConfig } from '../config/cluster.ts';
import { ControlServer } from '../collective/control.ts';
import { Curve, type KeyPair } from '../collective/curve.ts';
import type { Checkpoint } from '../model/checkpoint.ts';
import { copyIdentity } from '../model/copy-identity.ts';
import { controlAddress, hasRemoteRanks } from './remote/control-address.ts';

export interface ControlPlane extends AsyncDisposable {
  readonly server: ControlServer;
  /** undefined: everything travels in the clear. */
  readonly keys: KeyPair | undefined;
  /** What a process that this run starts has to say. */
  readonly token: string;
  /** Of the coordinator's copy of the model; '': all ranks read the same one. */
  readonly identity: string;
}

const maxRefusalLines = 100;

/** @throws ConfigError when the address cannot be bound, or may not without keys */
export async function openControlPlane(
  config: ClusterConfig,
  checkpoint: Checkpoint,
  log: (line: string) => void,
): Promise<ControlPlane> {
  const { endpoint, keys } = await controlAddress(config);
  const identity = hasRemoteRanks(config) ? await copyIdentity(checkpoint) : '';
  const curve = keys === undefined ? undefined : await Curve.open(keys);
  try {
    const server = await ControlServer.bind(endpoint, config.faults.heartbeatMs, curve);
    const token = randomBytes(16).toString('hex');
    server.token = token;
    server.onRefusal = onceEach(log);
    return {
      server,
      keys,
      token,
      identity,
      async [Symbol.asyncDispose]() {
        await server[Symbol.asyncDispose]();
        await curve?.[Symbol.asyncDispose]();
      },
    };
  } catch (error) {
    await curve?.[Symbol.asyncDispose]();
    throw error;
  }
}

/** Each line once: a stranger may try again every second. */
function onceEach(log: (line: string) => void): (reason: string) => void {
  const said = new Set<string>();
  return (reason) => {
    if (said.has(reason) || said.size > maxRefusalLines) return;
    said.add(reason);
    log(`refused: ${reason}`);
  };
}
