/**
 * What a cluster needs before its first rank: the control socket, the keys that guard it, the secrets of the run. Made
 * and disposed of together. Read next: cluster.ts, remote/control-address.ts.
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as after } from 'node:timers/promises';
import { messageOf } from '../config/errors.ts';
import { ControlServer } from '../collective/control.ts';
import { Curve } from '../collective/curve.ts';
import { newMachineKeys, readAuthorized, type KeyPair, type MachineKeys } from '../collective/key-files.ts';
import { copyIdentity } from '../model/copy-identity.ts';
import type { ClusterOptions } from './cluster.ts';
import { controlAddress, hasRemoteRanks } from './remote/control-address.ts';

export interface ControlPlane extends AsyncDisposable {
  readonly server: ControlServer;
  /** Of the ranks that this run starts itself; undefined: everything travels in the clear. */
  readonly keys: MachineKeys | undefined;
  /** What a process that this run starts has to say. */
  readonly token: string;
  /** Of the coordinator's copy of the model; '': all ranks read the same one. */
  readonly identity: string;
}

const maxRefusalLines = 100;

/** Between two tries to bind an address. */
const bindEveryMs = 50;

/** @throws ConfigError when the address cannot be bound, or may not without keys */
export async function openControlPlane(options: ClusterOptions): Promise<ControlPlane> {
  const { checkpoint, log, reduced } = options;
  // Ranks that are missing come back to the same address.
  const config = reduced?.whole ?? options.config;
  const { endpoint, keys: own } = await controlAddress(config);
  const identity = hasRemoteRanks(config) ? await copyIdentity(checkpoint) : '';
  const keys = own && newMachineKeys(own);
  const curve = own && keys && (await Curve.open(own, await doorkeeper(config.security.keys, [own, keys], log)));
  try {
    const server = await bound(() => ControlServer.bind(endpoint, config.faults.heartbeatMs, curve), options);
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

/** ZeroMQ frees the address of a socket that was closed a moment later. */
async function bound(
  bind: () => Promise<ControlServer>,
  { bindWithinMs = 0, signal }: ClusterOptions,
): Promise<ControlServer> {
  const until = performance.now() + bindWithinMs;
  for (;;)
    try {
      return await bind();
    } catch (error) {
      if (performance.now() >= until) throw error;
      await after(bindEveryMs, undefined, { signal });
    }
}

/**
 * Whose key is heard: `members`, and the machines of the list, which is read anew for each that is not yet connected.
 * @throws ConfigError when the list is wrong now; later that is logged, and refuses
 */
async function doorkeeper(
  path: string,
  members: readonly KeyPair[],
  log: (line: string) => void,
): Promise<(publicKey: string) => Promise<boolean>> {
  await readAuthorized(path);
  return async (publicKey) => {
    if (members.some((member) => member.publicKey === publicKey)) return true;
    try {
      return (await readAuthorized(path)).has(publicKey);
    } catch (error) {
      log(`refused: a machine that joins: ${messageOf(error)}`);
      return false;
    }
  };
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
