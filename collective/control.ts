/**
 * The two ends of the control plane: ControlServer (coordinator, ROUTER) and ControlClient (rank, DEALER). They carry the
 * messages of messages.ts, one receive in flight and one send after another.
 * Refuses: messages that no schema accepts, strangers, second claimants of a rank (dropped and counted).
 * Read next: messages.ts, zmq.ts (the sockets).
 */
import { PeerError } from '../config/errors.ts';
import { Deadline } from './deadline.ts';
import { removeSocketFolder } from './endpoint.ts';
import { encodeMessage, FrameError, parseMessage } from './frame.ts';
import { toCoordinatorSchema, toRankSchema } from './messages.ts';
import type { ToCoordinator, ToRank } from './messages.ts';
import { bindRouter, connectDealer, receiveWithin, sendWithin } from './zmq.ts';
import type { Dealer, Router } from './zmq.ts';

/** After a lost connection, messages that arrived before it are still delivered. */
const drainMs = 50;

export interface Received<Message> {
  readonly message: Message;
  /** Owned by the receiver. */
  readonly payload?: Float32Array;
}

/** Without one that suits the cluster: how often a silent peer is asked for a sign of life. */
const defaultHeartbeatMs = 200;
/** Unanswered heartbeats until a connection is given up: a rank that is frozen is noticed after 3 to 4 intervals. */
const missedHeartbeats = 3;
/** Between looks at who is lost: strangers who come and go must not cost more. */
const probeEveryMs = 20;

/**
 * The coordinator's end. Knows a rank from its hello until `forget`. Heartbeats are ZeroMQ's own: the thread that answers
 * them also runs while a kernel keeps the rank busy, and stops when the process does.
 */
export class ControlServer implements AsyncDisposable {
  readonly endpoint: string;
  /** Messages dropped: malformed, from a stranger, or a second hello for a rank that is taken. */
  refused = 0;
  /** Why the latest was dropped; null: none was. */
  lastRefusal: string | null = null;
  /** What a hello has to carry, so that only processes meant for this run become ranks; undefined: anything. */
  token: string | undefined;
  /** Called when a rank that has said hello can no longer be reached: its process or host is gone, or frozen. */
  onLost: (rank: number) => void = () => undefined;

  /** A rank that falls silent is noticed after this long at most. */
  readonly noticeMs: number;

  readonly #socket: Router;
  readonly #peers = new Map<number, Buffer>();
  #sends: Promise<void> = Promise.resolve();
  #probing: NodeJS.Timeout | undefined;

  private constructor(socket: Router, endpoint: string, heartbeatMs: number) {
    this.#socket = socket;
    this.endpoint = endpoint;
    this.noticeMs = (missedHeartbeats + 1) * heartbeatMs;
    // Says that some connection ended, not whose.
    socket.events.on('disconnect', () => {
      this.#probing ??= setTimeout(() => void this.#probe(), probeEveryMs);
    });
  }

  /**
   * @param endpoint 'ipc' (a socket file in a fresh temporary folder), 'tcp://127.0.0.1:*', or a full address
   * @throws ConfigError when the address cannot be bound
   */
  static async bind(endpoint: string, heartbeatMs = defaultHeartbeatMs): Promise<ControlServer> {
    const bound = await bindRouter(endpoint, { intervalMs: heartbeatMs, timeoutMs: missedHeartbeats * heartbeatMs });
    return new ControlServer(bound.socket, bound.endpoint, heartbeatMs);
  }

  /** @throws PeerError when the rank has not said hello, is gone, or takes no messages. The payload is copied. */
  send(rank: number, message: ToRank, payload?: Float32Array): Promise<void> {
    const peer = this.#peers.get(rank);
    if (!peer) return Promise.reject(new PeerError(`rank ${rank} has not said hello; cannot send it ${message.kind}`));
    const frames = [peer, ...encodeMessage(message, payload)];
    const sent = this.#sends.then(() =>
      sendWithin(this.#socket, frames, () => `message ${message.kind} to rank ${rank}`),
    );
    // The caller sees the failure; it must not fail the sends that wait behind it.
    this.#sends = sent.catch(() => undefined);
    return sent;
  }

  /** The next message that a schema accepts. @throws PeerError after close, or when `timeoutMs` pass without one. */
  async receive(timeoutMs?: number): Promise<Received<ToCoordinator>> {
    const deadline = new Deadline(timeoutMs);
    for (;;) {
      const frames = await receiveWithin(this.#socket, deadline.remainingMs());
      if (!frames) throw this.#noMessage(timeoutMs);
      const received = this.#accept(frames);
      if (received) return received;
    }
  }

  /** Lets another process claim the rank: call when its process has ended. */
  forget(rank: number): void {
    this.#peers.delete(rank);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#probing);
    if (this.#socket.closed) return;
    this.#socket.close();
    await removeSocketFolder(this.endpoint);
  }

  /** A message to each rank: one that has no connection any more cannot take it. */
  async #probe(): Promise<void> {
    this.#probing = undefined;
    for (const rank of this.#peers.keys()) {
      const isReached = await this.send(rank, { kind: 'probe' }).then(
        () => true,
        () => false,
      );
      if (!isReached && !this.#socket.closed && this.#peers.has(rank)) this.onLost(rank);
    }
  }

  #noMessage(timeoutMs: number | undefined): PeerError {
    if (this.#socket.closed) return new PeerError(`control socket ${this.endpoint} is closed`);
    return new PeerError(`no message from any rank in ${timeoutMs} ms at ${this.endpoint}`);
  }

  #accept(frames: readonly Buffer[]): Received<ToCoordinator> | null {
    const [peer, ...rest] = frames;
    const received = peer && this.#parse(rest, toCoordinatorSchema);
    if (!received) return null;
    const { kind, rank } = received.message;
    const known = this.#peers.get(rank);
    if (known?.equals(peer)) return received;
    if (kind === 'hello' && this.token !== undefined && received.message.token !== this.token)
      return this.#refuse(`hello of rank ${rank} with another token, process ${received.message.pid}`);
    if (kind !== 'hello') return this.#refuse(`${kind} of rank ${rank} from a process that has not said hello`);
    if (known) return this.#refuse(`hello of a second rank ${rank}, process ${received.message.pid}`);
    this.#peers.set(rank, peer);
    return received;
  }

  #parse(frames: readonly Buffer[], schema: typeof toCoordinatorSchema): Received<ToCoordinator> | null {
    try {
      return parseMessage(frames, schema);
    } catch (error) {
      if (error instanceof FrameError) return this.#refuse(error.message);
      throw error;
    }
  }

  #refuse(reason: string): null {
    this.refused++;
    this.lastRefusal = reason;
    return null;
  }
}

/** A rank's end. */
export class ControlClient implements AsyncDisposable {
  readonly #socket: Dealer;
  readonly #rank: number;
  readonly #endpoint: string;
  #lost = false;
  #isReceiving = false;
  #sends: Promise<void> = Promise.resolve();

  private constructor(socket: Dealer, endpoint: string, rank: number) {
    this.#socket = socket;
    this.#endpoint = endpoint;
    this.#rank = rank;
  }

  /** @throws PeerError when no coordinator answers at `endpoint` within `timeoutMs` */
  static async connect(endpoint: string, rank: number, timeoutMs = 10_000): Promise<ControlClient> {
    const socket = await connectDealer(endpoint, timeoutMs);
    if (socket === null) throw new PeerError(`rank ${rank}: no coordinator at ${endpoint} in ${timeoutMs} ms`);
    const client = new ControlClient(socket, endpoint, rank);
    socket.events.on('disconnect', () => client.#loseConnection());
    return client;
  }

  /** @throws PeerError when the coordinator is gone or takes no messages. The payload is copied. */
  send(message: ToCoordinator, payload?: Float32Array): Promise<void> {
    const frames = encodeMessage(message, payload);
    const sent = this.#sends.then(() => {
      if (this.#lost || this.#socket.closed) throw this.#ended();
      return sendWithin(this.#socket, frames, () => `message ${message.kind} of rank ${this.#rank} to the coordinator`);
    });
    // The caller sees the failure; it must not fail the sends that wait behind it.
    this.#sends = sent.catch(() => undefined);
    return sent;
  }

  /**
   * The next message, also one that arrived before the connection was lost.
   * @throws PeerError after close, when the coordinator is gone, when it sends what no schema accepts (it is trusted,
   * so this is another version of it), or when `timeoutMs` pass without a message
   */
  async receive(timeoutMs?: number): Promise<Received<ToRank>> {
    this.#isReceiving = true;
    const frames = await receiveWithin(this.#socket, this.#lost ? 0 : (timeoutMs ?? -1));
    this.#isReceiving = false;
    if (!frames) throw this.#noMessage(timeoutMs);
    try {
      return parseMessage(frames, toRankSchema);
    } catch (error) {
      if (!(error instanceof FrameError)) throw error;
      throw new PeerError(`rank ${this.#rank}: bad message from the coordinator: ${error.message}`, { cause: error });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket.close();
    // A coordinator that was killed leaves its socket files; the ranks that notice remove them.
    if (this.#lost) await removeSocketFolder(this.#endpoint);
  }

  #loseConnection(): void {
    this.#lost = true;
    // A receive in flight would wait for ever: the socket is closed under it once nothing more can arrive.
    setTimeout(() => this.#isReceiving && this.#socket.close(), drainMs);
  }

  #noMessage(timeoutMs: number | undefined): PeerError {
    if (this.#lost || this.#socket.closed) return this.#ended();
    return new PeerError(`rank ${this.#rank}: nothing from the coordinator in ${timeoutMs} ms`);
  }

  #ended(): PeerError {
    const why = this.#lost ? `the coordinator at ${this.#endpoint} is gone` : 'control channel is closed';
    return new PeerError(`rank ${this.#rank}: ${why}`);
  }
}
