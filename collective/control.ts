/**
 * The coordinator's end of the control plane (ROUTER); control-client.ts is a rank's. Both carry the messages of
 * messages.ts, one receive in flight and one send after another.
 * Refuses: messages that no schema accepts, strangers, second claimants of a rank (dropped and counted).
 * Read next: messages.ts, zmq.ts (the sockets).
 */
import { PeerError } from '../config/errors.ts';
import { packageVersion } from '../config/version.ts';
import type { Curve } from './curve.ts';
import { Deadline } from './deadline.ts';
import { removeSocketFolder } from './endpoint.ts';
import { decodeMessage, encodeMessage, FrameError, parseMessage } from './frame.ts';
import { greetingSchema, type Hello, type Offer } from './greetings.ts';
import { protocolVersion, toCoordinatorSchema } from './messages.ts';
import type { FromRank, ToCoordinator, ToRank } from './messages.ts';
import { bindRouter, receiveWithin, sendWithin } from './zmq.ts';
import type { Router } from './zmq.ts';

export interface Received<Message> {
  readonly message: Message;
  /** Owned by the receiver. */
  readonly payload?: Float32Array;
}

/** Without one that suits the cluster: how often a silent peer is asked for a sign of life. */
const defaultHeartbeatMs = 200;
/** Unanswered heartbeats until a connection is given up: a rank that is frozen is noticed after 3 to 4 intervals. */
const missedHeartbeats = 3;
const handshakeErrors = [
  ['handshake:error:auth', 'its key is not allowed here; `tpla keys --for NAME` makes one that is'],
  ['handshake:error:protocol', 'no key, keys that do not fit, or not ZeroMQ'],
  ['handshake:error:other', 'it ended before the handshake did'],
] as const;
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
  /** Which rank a process gets that offers itself, or why it gets none. `isTaken`: whether a process has the rank. */
  place: (offer: Offer, isTaken: (rank: number) => boolean) => { rank: number } | { refusal: string } = () => ({
    refusal: 'this coordinator starts all its ranks itself',
  });
  /** Told why an offer, hello or connection was refused. */
  onRefusal: (reason: string) => void = () => undefined;
  /** Connections that ended in the handshake: wrong keys, or no ZeroMQ at all. */
  refusedHandshakes = 0;
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
    for (const [event, reason] of handshakeErrors)
      socket.events.on(event, () => {
        this.refusedHandshakes++;
        this.onRefusal(`a connection to ${endpoint}: ${reason}`);
      });
  }

  /**
   * @param endpoint 'ipc' (a socket file in a fresh temporary folder), 'tcp://127.0.0.1:*', or a full address
   * @param curve says which keys are heard; undefined: whoever reaches the address is heard
   * @throws ConfigError when the address cannot be bound
   */
  static async bind(endpoint: string, heartbeatMs = defaultHeartbeatMs, curve?: Curve): Promise<ControlServer> {
    const heartbeats = { intervalMs: heartbeatMs, timeoutMs: missedHeartbeats * heartbeatMs };
    const bound = await bindRouter(endpoint, heartbeats, curve?.server);
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

  /**
   * The same where nobody here can end the process: if it is alive after all, it would wait for ever for a place that it has
   * lost. Told to stop, it can come again.
   */
  dismiss(rank: number): void {
    // One that is gone or frozen cannot be told.
    if (this.#peers.has(rank)) this.send(rank, { kind: 'stop' }).catch(() => undefined);
    this.forget(rank);
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
    const received = peer && this.#parse(peer, rest);
    if (!received) return null;
    const { message } = received;
    if (message.kind === 'offer') return this.#placed(peer, message);
    const { kind, rank } = message;
    const known = this.#peers.get(rank);
    if (!known?.equals(peer)) {
      if (kind !== 'hello') return this.#refuse(`${kind} of rank ${rank} from a process that has not said hello`);
      if (this.token !== undefined && message.token !== this.token)
        return this.#refuse(`hello of rank ${rank} with another token, process ${message.pid}`);
      if (known) return this.#refuse(`hello of a second rank ${rank}, process ${message.pid}`);
      this.#peers.set(rank, peer);
    }
    return received.payload ? { message, payload: received.payload } : { message };
  }

  #placed(peer: Buffer, offer: Offer): Received<ToCoordinator> | null {
    const { worldSize: _, modelIdentity: __, ...greeting } = offer;
    const isKnown = [...this.#peers.values()].some((known) => known.equals(peer));
    const place = isKnown ? { refusal: 'it has a rank already' } : this.place(offer, (rank) => this.#peers.has(rank));
    if ('refusal' in place) return this.#turnAway(peer, place.refusal, `process ${offer.pid} on ${offer.host}`);
    this.#peers.set(place.rank, peer);
    const hello: Hello = { ...greeting, kind: 'hello', rank: place.rank };
    return { message: hello };
  }

  /** Tells a process that offered itself why not. */
  #turnAway(peer: Buffer, reason: string, who: string): null {
    const frames = [peer, ...encodeMessage({ kind: 'refused', reason } satisfies ToRank)];
    // Who cannot take the answer is gone and needs none.
    this.#sends = this.#sends
      .then(() => sendWithin(this.#socket, frames, () => `refusal of ${who}`))
      .catch(() => undefined);
    this.onRefusal(`${who}: ${reason}`);
    return this.#refuse(`offer of ${who}: ${reason}`);
  }

  #parse(peer: Buffer, frames: readonly Buffer[]): Received<FromRank> | null {
    try {
      // Before the strict schema: what another version says may have another shape.
      const greeting = greetingSchema.safeParse(decodeMessage(frames).message).data;
      if (greeting !== undefined && greeting.protocol !== protocolVersion) {
        const { host, version, protocol } = greeting;
        const reason = `version ${version}, protocol ${protocol}; expected ${packageVersion}, protocol ${protocolVersion}; install the same version`;
        return this.#turnAway(peer, reason, `process on ${host}`);
      }
      return parseMessage(frames, toCoordinatorSchema);
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
