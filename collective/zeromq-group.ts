/**
 * ProcessGroup over ZeroMQ, between processes and hosts. Made in two phases: a rank binds and reports its endpoint
 * (hello), and joins when it has been told everyone's (setup). Read next: mailbox.ts (frames), exchange.ts (algorithms).
 */
import { createHash } from 'node:crypto';
import { invariant, PeerError } from '../config/errors.ts';
import type { RingCurve } from './curve.ts';
import { directBarrier, directBroadcast, directRoundTrip } from './direct.ts';
import { removeSocketFile } from './endpoint.ts';
import { Exchange, type ZeroMqAlgorithm } from './exchange.ts';
import type { GroupStats, ProcessGroup } from './group.ts';
import { Mailbox, maxFrameBytes } from './mailbox.ts';
import type { MailboxSettings, Tamper } from './mailbox-settings.ts';
import type { Payload } from './payload.ts';
import { checkGather, checkRoot, OperationRunner, partsOf } from './operation.ts';
import { bindPull } from './zmq.ts';
import type { CurveOptions, Pull } from './zmq.ts';

export interface JoinSettings {
  readonly rank: number;
  readonly worldSize: number;
  /** Frames of an earlier epoch are dropped, those of a later one kept for the next join. */
  readonly epoch: number;
  /** Where each rank is bound. [worldSize] */
  readonly endpoints: readonly string[];
  /** Public key of each, where the binding has keys. [worldSize] */
  readonly keys?: readonly string[];
  /** Deadline of every send and receive. */
  readonly timeoutMs: number;
  /** The same on all ranks. By default auto: by message size. Tests and benchmarks fix it. */
  readonly algorithm?: ZeroMqAlgorithm;
  /** Then sums travel as float32, whatever their payload. By default false. */
  readonly isOneHost?: boolean;
  /** Aborted: the join is given up at once, with a PeerError. */
  readonly signal?: AbortSignal | undefined;
  /** Fault drills only. */
  readonly tamper?: Tamper | undefined;
}

/** A rank's bound socket. Outlives groups: after a restart of a rank the others join again with the next epoch. */
export interface RingBinding extends AsyncDisposable {
  readonly endpoint: string;
  /** Its public key; empty: frames travel in the clear. */
  readonly key: string;
  /**
   * Connects to all ranks and waits until each has answered. Dispose the previous group first.
   * @throws PeerError naming the rank that did not answer in `timeoutMs`
   */
  join(settings: JoinSettings): Promise<ZeroMqGroup>;
}

/**
 * @param endpoint 'ipc' (fresh), an address from endpoint.ts, or 'tcp://host:*'
 * @param curve keys of both directions, the caller's to dispose of; undefined: frames travel in the clear
 * @throws ConfigError when it cannot be bound
 */
export async function bindRing(endpoint: string, curve?: RingCurve): Promise<RingBinding> {
  const bound = await bindPull(endpoint, maxFrameBytes, curve?.server);
  const early: Buffer[] = [];
  return {
    endpoint: bound.endpoint,
    key: curve?.publicKey ?? '',
    async join(settings) {
      if (curve === undefined) return ZeroMqGroup.join(bound.socket, early, settings);
      const { rank, endpoints, keys = [] } = settings;
      const peerKeys = endpoints.map((_, peer) => (peer === rank ? curve.publicKey : keyOf(keys, peer, rank)));
      curve.allow(peerKeys.filter((_, peer) => peer !== rank));
      const curveOf = (peer: number): CurveOptions => curve.clientOf(peerKeys[peer] ?? '');
      return ZeroMqGroup.join(bound.socket, early, { ...settings, curveOf });
    },
    async [Symbol.asyncDispose]() {
      if (bound.socket.closed) return;
      bound.socket.close();
      await removeSocketFile(bound.endpoint);
    },
  };
}

/** Without one the connection would be in the clear. */
function keyOf(keys: readonly string[], peer: number, rank: number): string {
  const key = keys[peer] ?? '';
  if (key === '') throw new PeerError(`rank ${rank}: rank ${peer} has no key for frames, and this rank has one`);
  return key;
}

export class ZeroMqGroup implements ProcessGroup {
  readonly rank: number;
  readonly worldSize: number;

  readonly #mailbox: Mailbox;
  readonly #runner: OperationRunner;
  readonly #exchange: Exchange;
  readonly #isOneHost: boolean;

  private constructor(
    mailbox: Mailbox,
    runner: OperationRunner,
    { algorithm = 'auto', isOneHost = false }: JoinSettings,
  ) {
    this.rank = mailbox.rank;
    this.worldSize = mailbox.worldSize;
    this.#mailbox = mailbox;
    this.#runner = runner;
    this.#exchange = new Exchange(mailbox, algorithm);
    this.#isOneHost = isOneHost;
  }

  /** @throws PeerError naming the rank that did not answer in `timeoutMs` */
  static async join(
    inbox: Pull,
    early: Buffer[],
    settings: JoinSettings & Pick<MailboxSettings, 'curveOf'>,
  ): Promise<ZeroMqGroup> {
    const { rank, worldSize, endpoints } = settings;
    invariant(endpoints.length === worldSize, `rank ${rank}: ${endpoints.length} endpoints for ${worldSize} ranks`);
    invariant(rank >= 0 && rank < worldSize, `rank ${rank} of ${worldSize}`);
    const runner = new OperationRunner(rank);
    const groupTag = createHash('sha256').update(endpoints.join('\n')).digest().readUInt32LE(0);
    const mailbox = new Mailbox(inbox, early, { ...settings, groupTag }, runner.stats);
    const group = new ZeroMqGroup(mailbox, runner, settings);
    const giveUp = (): void => mailbox.close();
    settings.signal?.addEventListener('abort', giveUp);
    if (settings.signal?.aborted === true) giveUp();
    try {
      await runner.run('hello', 0, 'handshake', (call) => {
        mailbox.begin(call);
        return directBarrier(mailbox);
      });
    } catch (error) {
      mailbox.close();
      throw error;
    } finally {
      settings.signal?.removeEventListener('abort', giveUp);
    }
    return group;
  }

  get stats(): GroupStats {
    return this.#runner.stats;
  }

  /** For a group that is made of this one's ranks and used in its place: see two-level-group.ts. */
  get mailbox(): Mailbox {
    return this.#mailbox;
  }

  /** Frames dropped so far: malformed, of another group or epoch. */
  get refused(): number {
    return this.#mailbox.refused;
  }

  /** What carries an all-reduce of `floats` elements: for Ready and doctor. */
  transportOf(floats: number): 'none' | `zeromq ${ReturnType<Exchange['algorithmOf']>}` {
    if (this.worldSize === 1) return 'none';
    return `zeromq ${this.#exchange.algorithmOf(floats)}`;
  }

  /** Measures which algorithm is fastest for which size, and uses it. Called by all ranks at once. */
  async chooseAlgorithms(): Promise<void> {
    if (this.worldSize === 1) return;
    await this.#exchange.measure((floats, work) =>
      this.#runner.run('all-reduce', floats, 'choice of algorithm', (call) => {
        this.#mailbox.begin(call);
        return work();
      }),
    );
  }

  allReduceSum(buffer: Float32Array, label: string, payload: Payload = 'f32'): Promise<void> {
    return this.#runner.run('all-reduce', buffer.length, label, (call) => {
      if (this.worldSize === 1) return undefined;
      this.#mailbox.begin(call);
      return this.#exchange.allReduce(buffer, this.#isOneHost ? 'f32' : payload);
    });
  }

  allGather(part: Float32Array, lengths: readonly number[], out: Float32Array, label: string): Promise<void> {
    return this.#runner.run('all-gather', out.length, label, (call) => {
      checkGather(this.rank, this.worldSize, part, lengths, out, label);
      const parts = partsOf(out, lengths);
      parts[this.rank]?.set(part);
      if (this.worldSize === 1) return undefined;
      this.#mailbox.begin(call);
      return this.#exchange.allGather(parts, out.length);
    });
  }

  broadcast(buffer: Float32Array, root: number, label: string): Promise<void> {
    return this.#runner.run('broadcast', buffer.length, label, (call) => {
      checkRoot(this.rank, this.worldSize, root, label);
      if (this.worldSize === 1) return undefined;
      this.#mailbox.begin(call);
      return directBroadcast(this.#mailbox, buffer, root);
    });
  }

  barrier(label: string): Promise<void> {
    return this.#runner.run('barrier', 0, label, (call) => {
      if (this.worldSize === 1) return undefined;
      this.#mailbox.begin(call);
      return directBarrier(this.#mailbox);
    });
  }

  readonly roundTrip = (from: number, to: number, buffer: Float32Array, label: string): Promise<void> =>
    this.#runner.run('round-trip', buffer.length, label, (call) => {
      invariant(from !== to && Math.max(from, to) < this.worldSize, `round trip from rank ${from} to ${to}`);
      if (this.rank !== from && this.rank !== to) return undefined;
      this.#mailbox.begin(call);
      return directRoundTrip(this.#mailbox, buffer, from, to);
    });

  /** An operation that runs meanwhile fails with a PeerError. Leaves the binding open. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#mailbox.close();
    await this.#runner.close();
  }
}
