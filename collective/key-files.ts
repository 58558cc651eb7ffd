/**
 * Key files of clusters on several machines, as `tpla keys` writes them. The coordinator's folder holds `cluster.key` (its
 * own pair) and `authorized`: a line for each machine that may join, public key and name. A machine's file holds its own
 * pair and the coordinator's public key. A copy of `cluster.key` is a key of a machine, too: one for all of them.
 * Refuses: secret keys that others may read, a list that others may write. Read next: curve.ts (what the keys do).
 */
import type { Stats } from 'node:fs';
import { appendFile, mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { z } from 'zod';
import { ConfigError, messageOf } from '../config/errors.ts';
import { curveKeyPair } from './zmq.ts';

export interface KeyPair {
  /** Z85, 40 characters. */
  readonly publicKey: string;
  readonly secretKey: string;
}

/** Of a machine that joins. */
export interface MachineKeys extends KeyPair {
  /** Whom it believes to be the coordinator. */
  readonly coordinatorKey: string;
}

const z85Key = z.string().regex(/^[0-9a-zA-Z.\-:+=^!/*?&<>()[\]{}@%$#]{40}$/, 'expected a Z85 key of 40 characters');
const keyFileSchema = z.strictObject({ publicKey: z85Key, secretKey: z85Key, coordinatorKey: z85Key.optional() });
type KeyFile = z.infer<typeof keyFileSchema>;

/** In the folder that `security.keys` and `--keys` name. */
export const keyFileName = 'cluster.key';
/** The same on a machine that joins; without it, keyFileName. */
export const machineFileName = 'machine.key';
export const authorizedFileName = 'authorized';
const machineName = /^[\w-][\w.-]{0,62}$/;
/** Others may not read the file, nor the group change it; the group may read, for mounted secrets. */
const forbiddenBits = 0o027;
/** Of the list of public keys: nobody else may write it. */
const forbiddenListBits = 0o022;

/** A new key pair of a cluster in `folder`. @returns the file @throws ConfigError when there is one already */
export async function writeKeys(folder: string): Promise<string> {
  return writeNew(folder, keyFileName, curveKeyPair());
}

/**
 * A key of its own for a machine, beside the cluster's, which is made where it is missing; from then on the machine may
 * join. @returns the file, to be copied there @throws ConfigError when the name has a key already
 */
export async function writeMachineKeys(folder: string, name: string): Promise<string> {
  const file = `${name}.key`;
  if (!machineName.test(name) || file === keyFileName || file === machineFileName)
    throw new ConfigError(
      `--for: expected the name of a machine (letters, digits, . _ -), other than cluster and machine; got ${JSON.stringify(name)}`,
    );
  const known = await readAuthorized(folder);
  if ([...known.values()].includes(name))
    throw new ConfigError(`--for: ${name} has a line in ${join(folder, authorizedFileName)}; remove that first`);
  if ((await readKeys(folder)) === null) await writeKeys(folder);
  const cluster = await readKeys(folder);
  if (cluster === null) throw new ConfigError(`keys: ${join(folder, keyFileName)} has vanished`);
  const keys = newMachineKeys(cluster);
  const path = await writeNew(folder, file, keys);
  await appendFile(join(folder, authorizedFileName), `${keys.publicKey} ${name}\n`, { mode: 0o600 });
  return path;
}

/**
 * The coordinator's pair. @param path the key file, or the folder with it
 * @returns null when there is none @throws ConfigError
 */
export async function readKeys(path: string): Promise<KeyPair | null> {
  const found = await findKeys(path, [keyFileName]);
  if (found === null) return null;
  if (found.keys.coordinatorKey !== undefined)
    throw new ConfigError(`keys: ${found.path} is the key of a machine that joins, not of a coordinator`);
  return found.keys;
}

/** @param path as for readKeys, of a machine that joins @returns the file that holds them; null when there is none */
export async function findMachineKeys(path: string): Promise<{ path: string; keys: MachineKeys } | null> {
  const found = await findKeys(path, [machineFileName, keyFileName]);
  return found && { path: found.path, keys: asMachine(found.keys) };
}

/** @param where for the message @throws ConfigError */
export function parseMachineKeys(text: string, where: string): MachineKeys {
  return asMachine(parseKeys(text, where));
}

/**
 * Who may join, besides holders of `cluster.key`. @param path as for readKeys
 * @returns names by public key; empty when there is no list @throws ConfigError with the line that is wrong
 */
export async function readAuthorized(path: string): Promise<ReadonlyMap<string, string>> {
  const about = await statOf(path);
  const file = join(about === null || about.isDirectory() ? path : dirname(path), authorizedFileName);
  const mode = (await statOf(file))?.mode;
  if (mode === undefined) return new Map();
  if (process.platform !== 'win32' && (mode & forbiddenListBits) !== 0)
    throw new ConfigError(`keys: others can write ${file}, and so let anybody join; chmod 600 ${file}`);
  const names = new Map<string, string>();
  for (const [i, line] of (await readFile(file, 'utf8')).split('\n').entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue;
    const [key = '', name = ''] = line.trim().split(/\s+/);
    if (!z85Key.safeParse(key).success)
      throw new ConfigError(`keys: ${file}:${i + 1}: expected a public key and a name, got ${JSON.stringify(line)}`);
    names.set(key, name);
  }
  return names;
}

/** For the processes that one run starts itself: known to nobody else, and forgotten with the run. */
export function newMachineKeys(coordinator: KeyPair): MachineKeys {
  return { ...curveKeyPair(), coordinatorKey: coordinator.publicKey };
}

async function writeNew(folder: string, name: string, keys: KeyFile): Promise<string> {
  const path = join(folder, name);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  try {
    await writeFile(path, `${JSON.stringify(keys)}\n`, { mode: 0o600, flag: 'wx' });
  } catch (cause) {
    throw new ConfigError(`keys: cannot write ${path}: ${messageOf(cause)}; name another folder with --out`, { cause });
  }
  return path;
}

async function findKeys(path: string, names: readonly string[]): Promise<{ path: string; keys: KeyFile } | null> {
  const about = await statOf(path);
  if (about === null) return null;
  if (about.isDirectory()) {
    for (const name of names) {
      const found = await findKeys(join(path, name), []);
      if (found !== null) return found;
    }
    return null;
  }
  if (process.platform !== 'win32' && (about.mode & forbiddenBits) !== 0)
    throw new ConfigError(
      `keys: ${path} has mode ${(about.mode & 0o777).toString(8)}, so others can read the secret key; ` +
        `make new keys, or if it was nowhere shared: chmod 600 ${path}`,
    );
  return { path, keys: parseKeys(await readFile(path, 'utf8'), path) };
}

function parseKeys(text: string, where: string): KeyFile {
  const expected = `expected what \`tpla keys\` writes; copy the file from the coordinator's machine`;
  let raw: unknown;
  try {
    raw = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`keys: ${where} is not JSON; ${expected}`, { cause });
  }
  const parsed = keyFileSchema.safeParse(raw);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new ConfigError(`keys: ${where}, ${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'wrong'}; ${expected}`);
}

/** Who holds the coordinator's own pair expects that pair there. */
function asMachine({ publicKey, secretKey, coordinatorKey = publicKey }: KeyFile): MachineKeys {
  return { publicKey, secretKey, coordinatorKey };
}

async function statOf(path: string): Promise<Stats | null> {
  try {
    return await stat(path);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return null;
    throw new ConfigError(`keys: ${path} cannot be read: ${messageOf(error)}`, { cause: error });
  }
}
