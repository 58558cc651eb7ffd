/**
 * The only file that opens ZeroMQ sockets: every one has its linger, timeouts and limits set here. ControlServer
 * (coordinator) and ControlClient (rank) carry the messages of messages.ts; mailbox.ts owns the PUSH and PULL sockets of
 * collectives. Each socket has one owner, one receive in flight and sends one after another.
 * Refuses: messages that no schema accepts, strangers, second claimants of a rank (dropped and counted).
 * Read next: messages.ts, mailbox.ts.
 */
import { Dealer, Pull, Push, Router } from 'zeromq';
import { ConfigError, InvariantError, messageOf, PeerError } from '../config/errors.ts';
import { Deadline } from './deadline.ts';
import { freshEndpoint, removeSocketFolder } from './endpoint.ts';
import { encodeMessage, FrameError, maxPayloadBytes, parseMessage } from './frame.ts';
import { toCoordinatorSchema, toRankSchema } from './messages.ts';
import type { ToCoordinator, ToRank } from './messages.ts';

export type { Pull, Push } from 'zeromq';

export interface Received<Message> {
  readonly message: Message;
  /** Owned by the receiver. */
  readonly payload?: Float32Array;
}

const sendTimeoutMs = 10_000;
/** Last words (stop, failed, the last frame of a sum) may still leave after close; a dead peer delays the exit this long. */
const lingerMs = 500;
/** After a lost connection, messages that arrived before it are still delivered. */
const drainMs = 50;

/** The coordinator's end. Knows a rank from its hello until `forget`. */
export class ControlServer implements AsyncDisposable {
  readonly endpoint: string;
  /** Messages dropped: malformed, from a stranger, or a second hello for a rank that is taken. */
  refused = 0;
  /** Why the latest was dropped; null: none was. */
  lastRefusal: string | null = null;

  readonly #socket: Router;
  readonly #peers = new Map<number, Buffer>();
  #sends: Promise<void> = Promise.resolve();

  private constructor(socket: Router, endpoint: string) {
    this.#socket = socket;
    this.endpoint = endpoint;
  }

  /**
   * @param endpoint 'ipc' (a socket file in a fresh temporary folder), 'tcp://127.0.0.1:*', or a full address
   * @throws ConfigError when the address cannot be bound
   */
  static async bind(endpoint: string): Promise<ControlServer> {
    // mandatory: a send to a rank that is gone fails instead of vanishing.
    const socket = new Router({ ...controlLimits, mandatory: true });
    return new ControlServer(socket, await bindSocket(socket, endpoint, 'control'));
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
    if (this.#socket.closed) return;
    this.#socket.close();
    await removeSocketFolder(this.endpoint);
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
    const socket = new Dealer(controlLimits);
    const client = new ControlClient(socket, endpoint, rank);
    const connected = await connectSocket(socket, endpoint, timeoutMs);
    if (!connected) {
      socket.close();
      throw new PeerError(`rank ${rank}: no coordinator at ${endpoint} in ${timeoutMs} ms`);
    }
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

/** @throws ConfigError when the address cannot be bound */
export async function bindPull(endpoint: string, maxFrameBytes: number): Promise<{ socket: Pull; endpoint: string }> {
  const socket = new Pull({ ...common, ...receiving(maxFrameBytes) });
  return { socket, endpoint: await bindSocket(socket, endpoint, 'ring') };
}

export function connectPush(endpoint: string, timeoutMs: number): Push {
  // immediate: without a connected peer a send waits for its timeout instead of vanishing into a queue. (Not for a
  // socket that also receives: on a lost connection libzmq would drop what had arrived.)
  const socket = new Push({ ...common, ...sending(timeoutMs), immediate: true });
  socket.connect(endpoint);
  return socket;
}

/** What every socket of ours has: none may keep a process alive for long. */
const common = {
  linger: lingerMs,
  // Answered by ZeroMQ's own thread, also while a kernel runs: a host that is gone ends the connection.
  heartbeatInterval: 1000,
  heartbeatTimeout: 5000,
  heartbeatTimeToLive: 5000,
};

/** What every socket that sends has: none may wait for ever, or queue without end. */
function sending(sendTimeout: number) {
  return { sendTimeout, sendHighWaterMark: 1000 };
}

/** What every socket that receives has. Each receive sets its own deadline; without one it waits until close. */
function receiving(maxMessageSize: number) {
  return { maxMessageSize, receiveTimeout: -1, receiveHighWaterMark: 1000 };
}

const controlLimits = { ...common, ...sending(sendTimeoutMs), ...receiving(maxPayloadBytes) };

async function bindSocket(socket: Router | Pull, requested: string, name: string): Promise<string> {
  const endpoint = await freshEndpoint(requested, name);
  try {
    await socket.bind(endpoint);
  } catch (cause) {
    socket.close();
    throw new ConfigError(`cannot bind ${endpoint}: ${messageOf(cause)}; choose a free address`, { cause });
  }
  return socket.lastEndpoint ?? endpoint;
}

/** Resolves true when the peer has answered the handshake, false when `timeoutMs` have passed. */
function connectSocket(socket: Dealer, endpoint: string, timeoutMs: number): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(false), timeoutMs);
    socket.events.on('handshake', () => {
      clearTimeout(timer);
      resolve(true);
    });
    socket.connect(endpoint);
  });
}

/** @throws PeerError: `what()`, and why */
export async function sendWithin(
  socket: Router | Dealer | Push,
  frames: Buffer | Buffer[],
  what: () => string,
): Promise<void> {
  try {
    await socket.send(frames);
  } catch (cause) {
    if (isCode(cause, 'EBUSY')) throw busy('send', cause);
    const isLate = isCode(cause, 'EAGAIN') && !socket.closed;
    throw new PeerError(`${what()}: ${isLate ? `not taken in ${socket.sendTimeout} ms` : messageOf(cause)}`, { cause });
  }
}

/** null: `timeoutMs` (-1: no limit) have passed, or the socket was closed meanwhile. */
export async function receiveWithin(socket: Router | Dealer | Pull, timeoutMs: number): Promise<Buffer[] | null> {
  if (socket.closed) return null;
  try {
    socket.receiveTimeout = timeoutMs;
    return await socket.receive();
  } catch (cause) {
    if (isCode(cause, 'EAGAIN')) return null;
    throw isCode(cause, 'EBUSY') ? busy('receive', cause) : cause;
  }
}

function busy(action: string, cause: unknown): InvariantError {
  return new InvariantError(`a second ${action} on one socket while the first is in flight`, { cause });
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}
