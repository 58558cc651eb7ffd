/**
 * Where a cluster's control plane is bound and whether it uses keys: a socket file where all ranks are local, otherwise
 * a TCP address, with CURVE unless it stays on this machine. Refuses to be reachable from other machines without keys,
 * except when told to. Read next: ../../collective/key-files.ts.
 */
import { lookup } from 'node:dns/promises';
import { defaultRemoteBind, isLoopbackEndpoint, parseSshHost, type ClusterConfig } from '../../config/cluster.ts';
import { ConfigError, messageOf } from '../../config/errors.ts';
import { readKeys, type KeyPair } from '../../collective/key-files.ts';

export interface ControlAddress {
  /** For ControlServer.bind. */
  readonly endpoint: string;
  /** undefined: everything travels in the clear. */
  readonly keys: KeyPair | undefined;
}

export function hasRemoteRanks({ ranks }: Pick<ClusterConfig, 'ranks'>): boolean {
  return ranks.some(({ host }) => host !== 'local');
}

/** @throws ConfigError: no keys where they are needed, or an address that remote ranks cannot reach */
export async function controlAddress(config: ClusterConfig): Promise<ControlAddress> {
  const { bind } = config.coordinator;
  if (!hasRemoteRanks(config)) {
    if (!isLoopbackEndpoint(bind))
      throw new ConfigError(
        `coordinator.bind: ${bind} is for ranks on other machines, and all ranks are local; use auto`,
      );
    return { endpoint: bind === 'auto' ? 'ipc' : bind, keys: undefined };
  }
  const endpoint = await resolved(bind === 'auto' ? defaultRemoteBind : bind);
  requireReachable(config, endpoint);
  return { endpoint, keys: await keysFor(config.security, endpoint) };
}

async function keysFor(security: ClusterConfig['security'], endpoint: string): Promise<KeyPair | undefined> {
  const { curve, keys: path, allowNoKeys } = security;
  const keys = curve === 'off' ? null : await readKeys(path);
  if (keys !== null) return keys;
  if (curve === 'on') throw new ConfigError(`security.keys: no key file at ${path}; run \`tpla keys --out ${path}\``);
  if (isLoopbackEndpoint(endpoint) || allowNoKeys) return undefined;
  throw new ConfigError(
    `coordinator.bind: ${endpoint} can be reached from other machines and there are no keys` +
      `${curve === 'off' ? ' (security.curve is off)' : ` at ${path}`}; run \`tpla keys --out ${path}\` and, for ` +
      'each machine, `tpla keys --for NAME`, or say --allow-no-keys',
  );
}

function requireReachable({ ranks }: ClusterConfig, endpoint: string): void {
  if (!isLoopbackEndpoint(endpoint)) return;
  for (const [rank, { host }] of ranks.entries()) {
    const destination = parseSshHost(host)?.destination.replace(/^.*@/, '');
    if (destination === undefined || destination === 'localhost' || destination.startsWith('127.')) continue;
    throw new ConfigError(
      `ranks.${rank}.host: ${host} cannot reach this machine at ${endpoint}; set coordinator.bind to tcp://ADDRESS:PORT ` +
        'with an address of this machine that it can reach',
    );
  }
}

/** libzmq binds to numbers, not names. */
async function resolved(endpoint: string): Promise<string> {
  const [, host, port] = /^tcp:\/\/([^:]+):(\d+)$/.exec(endpoint) ?? [];
  if (host === undefined || port === undefined) return endpoint;
  try {
    const { address } = await lookup(host, { family: 4 });
    return `tcp://${address}:${port}`;
  } catch (cause) {
    throw new ConfigError(`coordinator.bind: ${host} is no address or name of this machine: ${messageOf(cause)}`, {
      cause,
    });
  }
}
