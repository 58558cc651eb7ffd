/**
 * CURVE (ZeroMQ RFC 26) on both planes between machines: it encrypts, and proves to both sides whom they talk to.
 * The control plane uses long-lived keys (key-files.ts). On the data plane each rank's process makes a pair of its own,
 * and the coordinator tells every rank the others' public keys, over the control plane: a rank hears its peers of the
 * present epoch and nobody else. Who is refused is so by the ZAP handler (RFC 27) of the socket's context, before a byte
 * of theirs is read, and counted. Read next: zmq.ts (the sockets).
 */
import type { KeyPair, MachineKeys } from './key-files.ts';
import { curveKeyPair, openAuthenticator, type Authenticator, type CurveOptions } from './zmq.ts';

/** For a rank's socket of the control plane. */
export function curveClient({ publicKey, secretKey, coordinatorKey }: MachineKeys): CurveOptions {
  return { curvePublicKey: publicKey, curveSecretKey: secretKey, curveServerKey: coordinatorKey };
}

/** Keys of a socket that binds, and the handler that judges who connects to it. */
export class Curve implements AsyncDisposable {
  readonly server: CurveOptions;
  /** Connections refused because of their key. */
  refused = 0;
  readonly #authenticator: Authenticator;
  readonly #answering: Promise<void>;

  private constructor(
    own: KeyPair,
    authenticator: Authenticator,
    isAllowed: (publicKey: string) => boolean | Promise<boolean>,
  ) {
    const { context } = authenticator;
    this.server = { context, ...pairOf(own), curveServer: true, zapDomain: 'tpla' };
    this.#authenticator = authenticator;
    this.#answering = authenticator.run(async (key) => {
      const allowed = await isAllowed(encodeZ85(key));
      if (!allowed) this.refused++;
      return allowed;
    });
  }

  static async open(
    own: KeyPair,
    isAllowed: (publicKey: string) => boolean | Promise<boolean> = (key) => key === own.publicKey,
  ): Promise<Curve> {
    return new Curve(own, await openAuthenticator(), isAllowed);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#authenticator.close();
    await this.#answering;
  }
}

/** A peer may have been told of this rank before this rank was told of it: for so long its connection waits. */
const strangerMs = 10_000;
/** More strangers at once are refused without a wait. */
const maxStrangers = 64;

/** Keys of a rank's data plane, made for its process. */
export class RingCurve implements AsyncDisposable {
  /** Z85: for the coordinator, which tells the other ranks. */
  readonly publicKey: string;
  readonly #own: KeyPair;
  readonly #curve: Curve;
  readonly #peers: Peers;

  private constructor(own: KeyPair, curve: Curve, peers: Peers) {
    this.publicKey = own.publicKey;
    this.#own = own;
    this.#curve = curve;
    this.#peers = peers;
  }

  static async open(): Promise<RingCurve> {
    const own = curveKeyPair();
    const peers = new Peers();
    return new RingCurve(own, await Curve.open(own, (key) => peers.admit(key)), peers);
  }

  get server(): CurveOptions {
    return this.#curve.server;
  }

  /** For the socket that sends to this peer. */
  clientOf(peerKey: string): CurveOptions {
    return { ...pairOf(this.#own), curveServerKey: peerKey };
  }

  /** From here on these peers may connect, and only these. */
  allow(publicKeys: readonly string[]): void {
    this.#peers.become(publicKeys);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#peers.become([]);
    await this.#curve[Symbol.asyncDispose]();
  }
}

class Peers {
  #keys: ReadonlySet<string> = new Set();
  readonly #strangers = new Set<() => void>();

  become(keys: readonly string[]): void {
    this.#keys = new Set(keys);
    for (const look of this.#strangers) look();
  }

  /** Waits for a change that admits the key, within limits. */
  admit(key: string): boolean | Promise<boolean> {
    if (this.#keys.has(key)) return true;
    if (this.#strangers.size >= maxStrangers) return false;
    return new Promise((resolve) => {
      const settle = (isAllowed: boolean): void => {
        clearTimeout(timer);
        this.#strangers.delete(look);
        resolve(isAllowed);
      };
      const timer = setTimeout(() => settle(false), strangerMs);
      // Who knocks must not keep a process that is done.
      timer.unref();
      const look = (): void => {
        if (this.#keys.has(key)) settle(true);
      };
      this.#strangers.add(look);
    });
  }
}

function pairOf({ publicKey, secretKey }: KeyPair): CurveOptions {
  return { curvePublicKey: publicKey, curveSecretKey: secretKey };
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
