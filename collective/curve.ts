/**
 * Keys of ranks on several machines: CURVE encrypts and authenticates both planes. All machines of a cluster hold the
 * same key pair; whoever connects has to prove that it holds the secret one. Everyone else is refused by the ZAP handler
 * (ZeroMQ RFC 27) of the socket's context, before a byte of theirs is read, and counted.
 * Refuses: key files that others may read. Read next: zmq.ts (the sockets).
 */
import type { Stats } from 'node:fs';
import { mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { ConfigError, messageOf } from '../config/errors.ts';
import { curveKeyPair, openAuthenticator, type Authenticator, type CurveOptions } from './zmq.ts';

export interface KeyPair {
  /** Z85, 40 characters. */
  readonly publicKey: string;
  readonly secretKey: string;
}

const z85Key = z.string().regex(/^[0-9a-zA-Z.\-:+=^!/*?&<>()[\]{}@%$#]{40}$/, 'expected a Z85 key of 40 characters');
const keyFileSchema = z.strictObject({ publicKey: z85Key, secretKey: z85Key });

/** In the folder that `security.keys` and `--keys` name. */
export const keyFileName = 'cluster.key';
/** Others may not read the file, nor the group change it; the group may read, for mounted secrets. */
const forbiddenBits = 0o027;

/** A new key pair in `folder`. @returns the file @throws ConfigError when there is one already */
export async function writeKeys(folder: string): Promise<string> {
  const path = join(folder, keyFileName);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  try {
    await writeFile(path, `${JSON.stringify(curveKeyPair())}\n`, { mode: 0o600, flag: 'wx' });
  } catch (cause) {
    throw new ConfigError(`keys: cannot write ${path}: ${messageOf(cause)}; name another folder with --out`, { cause });
  }
  return path;
}

/** @param path the key file, or the folder with it  @returns null when there is none @throws ConfigError */
export async function readKeys(path: string): Promise<KeyPair | null> {
  const about = await statOf(path);
  if (about === null) return null;
  if (about.isDirectory()) return readKeys(join(path, keyFileName));
  if (process.platform !== 'win32' && (about.mode & forbiddenBits) !== 0)
    throw new ConfigError(
      `keys: ${path} has mode ${(about.mode & 0o777).toString(8)}, so others can read the secret key; ` +
        `make new keys, or if it was nowhere shared: chmod 600 ${path}`,
    );
  return parseKeys(await readFile(path, 'utf8'), path);
}

/** @param where for the message @throws ConfigError */
export function parseKeys(text: string, where: string): KeyPair {
  const expected = `expected what \`tpla keys\` writes; copy the file of the coordinator's machine`;
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

async function statOf(path: string): Promise<Stats | null> {
  try {
    return await stat(path);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return null;
    throw new ConfigError(`keys: ${path} cannot be read: ${messageOf(error)}`, { cause: error });
  }
}

/** The keys in use: what a process's sockets need, and the handler that judges who connects to them. */
export class Curve implements AsyncDisposable {
  /** For a socket that binds. */
  readonly server: CurveOptions;
  /** For a socket that connects. */
  readonly client: CurveOptions;
  /** Connections refused because of their key. */
  refused = 0;
  readonly #authenticator: Authenticator;
  readonly #answering: Promise<void>;

  private constructor(keys: KeyPair, authenticator: Authenticator) {
    const { context } = authenticator;
    const own = { context, curvePublicKey: keys.publicKey, curveSecretKey: keys.secretKey };
    this.server = { ...own, curveServer: true, zapDomain: 'tpla' };
    this.client = { ...own, curveServerKey: keys.publicKey };
    this.#authenticator = authenticator;
    this.#answering = authenticator.run((key) => {
      const isAllowed = encodeZ85(key) === keys.publicKey;
      if (!isAllowed) this.refused++;
      return isAllowed;
    });
  }

  static async open(keys: KeyPair): Promise<Curve> {
    return new Curve(keys, await openAuthenticator());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#authenticator.close();
    await this.#answering;
  }
}

const z85Digits = '0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#';

/** ZeroMQ RFC 32: 4 bytes, big-endian, are 5 digits of base 85. @param bytes a multiple of 4 */
export function encodeZ85(bytes: Buffer): string {
  let text = '';
  for (let at = 0; at + 4 <= bytes.length; at += 4) {
    let value = bytes.readUInt32BE(at);
    let digits = '';
    for (let i = 0; i < 5; i++) {
      digits = (z85Digits[value % 85] ?? '') + digits;
      value = Math.floor(value / 85);
    }
    text += digits;
  }
  return text;
}
