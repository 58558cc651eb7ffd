/**
 * Addresses of ZeroMQ sockets, fresh for every run: a file in a new temporary folder that only this user may enter, or
 * a port chosen by the system. Removes what it made; libzmq leaves the files of bound ipc sockets behind.
 * Read next: zmq.ts.
 */
import { createSocket } from 'node:dgram';
import { rmSync } from 'node:fs';
import { mkdtemp, readdir, rm, rmdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { InvariantError, PeerError } from '../config/errors.ts';

const folderPrefix = 'tpla-';

/**
 * What to bind. 'ipc': a socket file in a fresh folder (Windows: a port of 127.0.0.1); anything else as it stands,
 * such as 'tcp://127.0.0.1:*'.
 */
export async function freshEndpoint(requested: string, name: string): Promise<string> {
  if (requested !== 'ipc') return requested;
  if (process.platform === 'win32') return 'tcp://127.0.0.1:*';
  return `ipc://${join(await mkdtemp(join(tmpdir(), folderPrefix)), `${name}.sock`)}`;
}

/**
 * Where a rank binds so that its peers reach it the way it reaches the coordinator: beside the coordinator's socket
 * file, or on a port of the address that this machine has towards it. The process id keeps a restarted rank off its
 * predecessor's file. @throws PeerError when there is no route to the coordinator
 */
export async function ringEndpointBeside(controlEndpoint: string, rank: number): Promise<string> {
  const path = socketPath(controlEndpoint);
  if (path === null) return `tcp://${await ownAddressTowards(controlEndpoint)}:*`;
  return `ipc://${join(dirname(path), `rank-${rank}-${process.pid}.sock`)}`;
}

/** Connecting a UDP socket asks the system for the route and sends nothing. */
function ownAddressTowards(endpoint: string): Promise<string> {
  const [, host = '', port = ''] = /^tcp:\/\/(.+):(\d+)$/.exec(endpoint) ?? [];
  return new Promise((resolve, reject) => {
    const socket = createSocket('udp4');
    const settle = (action: () => void): void => {
      socket.close();
      action();
    };
    socket.once('error', (cause) =>
      settle(() => reject(new PeerError(`no route to ${endpoint}: ${cause.message}`, { cause }))),
    );
    socket.connect(Number(port), host, () => {
      const { address } = socket.address();
      settle(() => resolve(address));
    });
  });
}

/** Removes the socket file and, when it was the last one there, the temporary folder. Harmless when already gone. */
export async function removeSocketFile(endpoint: string): Promise<void> {
  const path = socketPath(endpoint);
  if (path === null) return;
  await rm(path, { force: true });
  if (isOurs(dirname(path))) await unless(['ENOTEMPTY', 'ENOENT'], rmdir(dirname(path)));
}

/**
 * At the end of a run: also removes the socket files of ranks that were killed. Sockets that are still connected live
 * on without them.
 */
export async function removeSocketFolder(endpoint: string): Promise<void> {
  const path = socketPath(endpoint);
  const folder = path === null ? '' : dirname(path);
  if (isOurs(folder)) {
    const names = await unless(['ENOENT'], readdir(folder));
    for (const name of names ?? []) if (name.endsWith('.sock')) await rm(join(folder, name), { force: true });
  }
  await removeSocketFile(endpoint);
}

function isOurs(folder: string): boolean {
  return basename(folder).startsWith(folderPrefix);
}

/** null instead of these system errors: other sockets still live there, or another process was faster. */
async function unless<T>(codes: readonly string[], action: Promise<T>): Promise<T | null> {
  try {
    return await action;
  } catch (error) {
    if (error instanceof Error && 'code' in error && codes.includes(String(error.code))) return null;
    throw error;
  }
}

/**
 * Removes a run's temporary folder with every socket file in it, at once: for exit hooks, when the owners of the files
 * may have been killed. Does nothing for other addresses.
 */
export function removeRunFolder(endpoint: string): void {
  const path = socketPath(endpoint);
  if (path === null) return;
  const folder = dirname(path);
  if (basename(folder).startsWith(folderPrefix)) rmSync(folder, { recursive: true, force: true });
}

function socketPath(endpoint: string): string | null {
  if (endpoint.startsWith('ipc://')) return endpoint.slice('ipc://'.length);
  if (endpoint.startsWith('tcp://')) return null;
  throw new InvariantError(`endpoint ${endpoint}: expected ipc:// or tcp://`);
}
