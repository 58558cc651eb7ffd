/**
 * A rank's end of the control plane (DEALER): see control.ts for the coordinator's. It ends when the coordinator does.
 * Read next: messages.ts, zmq.ts (the socket).
 */
import { ConfigError, PeerError } from '../config/errors.ts';
import type { Received } from './control.ts';
import { removeSocketFolder } from './endpoint.ts';
import { encodeLent, encodeMessage, FrameError, parseMessage } from './frame.ts';
import { toRankSchema } from './messages.ts';
import type { FromRank, ToRank } from './messages.ts';
import { connectDealer, receiveWithin, sendWithin } from './zmq.ts';
import type { CurveOptions, Dealer, NoConnection } from './zmq.ts';

/** After a lost connection, messages that arrived before it are still delivered. */
const drainMs = 50;

/** A rank's end. */
export class ControlClient implements AsyncDisposable {
  readonly #socket: Dealer;
  /** For messages: 'rank 2', or what this process is before it has a rank. */
  #who: string;
  readonly #endpoint: string;
  #lost = false;
  #isReceiving = false;
  #sends: Promise<void> = Promise.resolve();

  private constructor(socket: Dealer, endpoint: string, who: string) {
    this.#socket = socket;
    this.#endpoint = endpoint;
    this.#who = who;
  }

  /**
   * @param rank null: not known yet, see `becomes`
   * @throws PeerError when no coordinator answers at `endpoint` within `timeoutMs`; ConfigError when the keys do not fit
   */
  static async connect(
    endpoint: string,
    rank: number | null,
    timeoutMs = 10_000,
    curve?: CurveOptions,
  ): Promise<ControlClient> {
    const who = rank === null ? 'worker' : `rank ${rank}`;
    const { socket, failure } = await connectDealer(endpoint, timeoutMs, curve);
    if (socket === null) throw noConnection(who, endpoint, timeoutMs, failure, curve !== undefined);
    const client = new ControlClient(socket, endpoint, who);
    socket.events.on('disconnect', () => client.#loseConnection());
    return client;
  }

  /** Whether the coordinator may still hear this. */
  get isConnected(): boolean {
    return !this.#lost && !this.#socket.closed;
  }

  /** From here on messages name the rank that this process was given. */
  becomes(rank: number): void {
    this.#who = `rank ${rank}`;
  }

  /** @throws PeerError when the coordinator is gone or takes no messages. The payload is copied. */
  send(message: FromRank, payload?: Float32Array): Promise<void> {
    return this.#send(message.kind, encodeMessage(message, payload));
  }

  /** The same without a copy: the payload must stay as it is until the coordinator has it. */
  sendLent(message: FromRank, payload: Float32Array): Promise<void> {
    return this.#send(message.kind, encodeLent(message, payload));
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
      throw new PeerError(`${this.#who}: bad message from the coordinator: ${error.message}`, { cause: error });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket.close();
    // A coordinator that was killed leaves its socket files; the ranks that notice remove them.
    if (this.#lost) await removeSocketFolder(this.#endpoint);
  }

  #send(kind: FromRank['kind'], frames: Buffer[]): Promise<void> {
    const sent = this.#sends.then(() => {
      if (this.#lost || this.#socket.closed) throw this.#ended();
      return sendWithin(this.#socket, frames, () => `message ${kind} of ${this.#who} to the coordinator`);
    });
    // The caller sees the failure; it must not fail the sends that wait behind it.
    this.#sends = sent.catch(() => undefined);
    return sent;
  }

  #loseConnection(): void {
    this.#lost = true;
    // A receive in flight would wait for ever: the socket is closed under it once nothing more can arrive.
    setTimeout(() => this.#isReceiving && this.#socket.close(), drainMs);
  }

  #noMessage(timeoutMs: number | undefined): PeerError {
    if (this.#lost || this.#socket.closed) return this.#ended();
    return new PeerError(`${this.#who}: nothing from the coordinator in ${timeoutMs} ms`);
  }

  #ended(): PeerError {
    const why = this.#lost ? `the coordinator at ${this.#endpoint} is gone` : 'control channel is closed';
    return new PeerError(`${this.#who}: ${why}`);
  }
}

function noConnection(
  who: string,
  endpoint: string,
  timeoutMs: number,
  failure: NoConnection,
  hasKeys: boolean,
): PeerError | ConfigError {
  const advice = 'make one on its machine with `tpla keys --for NAME`, copy it here and name it with --keys';
  switch (failure) {
    case 'late':
      return new PeerError(`${who}: no coordinator at ${endpoint} in ${timeoutMs} ms`);
    case 'wrong key':
      return new ConfigError(`${who}: the coordinator at ${endpoint} refused the key; ${advice}`);
    case 'keys on one side only':
      return new ConfigError(
        hasKeys
          ? `${who}: ${endpoint} does not take our key: the coordinator uses none, or another; ${advice}`
          : `${who}: the coordinator at ${endpoint} asks for a key; ${advice}`,
      );
  }
}
