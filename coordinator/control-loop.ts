/**
 * The coordinator's conversation with its ranks: one loop receives every message and hands it to whoever waits for it.
 * A wait ends with all ranks' answers, with a deadline, or with the first failure of any rank; after a failure every
 * wait ends with the same error, until the next epoch begins. Knows nothing of models.
 * Read next: cluster.ts, which asks the questions.
 */
import { InvariantError, PeerError, invariant } from '../config/errors.ts';
import type { Failed, RankRequest, Reply, ToCoordinator, ToRank } from '../collective/messages.ts';
import type { ControlServer, Received } from '../collective/control.ts';
import { explainFailures, type ProcessExit, type RankFailure } from './failures.ts';

/** Between the first sign of a failure and its report: time for the process's end and its own words to meet. */
const gatherMs = 30;

export interface RankReply {
  readonly reply: Reply;
  readonly payload: Float32Array;
}

/** Someone who waits for one answer of each rank. */
interface Waiter {
  readonly from: readonly number[];
  readonly answers: Map<number, Received<ToCoordinator>>;
  readonly doing: string;
  readonly resolve: (answers: Received<ToCoordinator>[]) => void;
  readonly reject: (error: Error) => void;
}

/** What is known of the process that has a rank. */
export type Identify = (rank: number) => Pick<RankFailure, 'pid' | 'host'>;

type AnswerKey = 'hello' | 'ready' | number;

export class ControlLoop {
  readonly #server: ControlServer;
  readonly #worldSize: number;
  readonly #identify: Identify;
  /** How a user helps a rank that does not say hello; undefined: the usual guess. */
  advice: (rank: number) => string | undefined = () => undefined;
  /** Called once in each epoch that fails, with the failure that ends every wait. */
  onFailure: (error: Error) => void = () => undefined;
  /** Told how many layers a rank has loaded. */
  onLoading: (rank: number, layers: number) => void = () => undefined;
  readonly #waiters = new Map<AnswerKey, Waiter>();
  readonly #failures = new Map<number, RankFailure>();
  #failure: Error | undefined;
  readonly #seenAt = new Map<number, number>();
  #gathering: NodeJS.Timeout | undefined;
  #running = true;
  #epoch = 0;
  #closing = false;
  #nextId = 0;

  constructor(server: ControlServer, worldSize: number, identify: Identify) {
    this.#server = server;
    this.#worldSize = worldSize;
    this.#identify = identify;
    server.onLost = (rank) =>
      this.#note(rank, { late: 'stopped answering heartbeats; it is frozen, or its host is gone' });
  }

  get epoch(): number {
    return this.#epoch;
  }

  /** Ranks whose processes cannot go on, in this epoch. */
  get lost(): number[] {
    return [...this.#failures.values()].filter(isLost).map(({ rank }) => rank);
  }

  /** Whether somebody waits for this rank's hello. */
  awaitsHello(rank: number): boolean {
    const waiter = this.#waiters.get('hello');
    return waiter !== undefined && waiter.from.includes(rank) && !waiter.answers.has(rank);
  }

  /** performance.now() of the rank's latest message; 0: none yet. */
  seenAt(rank: number): number {
    return this.#seenAt.get(rank) ?? 0;
  }

  /**
   * Forgets the failure. What belongs to an earlier epoch is ignored from here on.
   * @returns the ranks that were lost in the epoch that ends; the others only complained of them
   * @throws the failure when no epoch can follow: messages are no longer received
   */
  nextEpoch(): number[] {
    if (!this.#running) throw this.#failure ?? new InvariantError('the control loop has ended');
    const { lost } = this;
    clearTimeout(this.#gathering);
    this.#gathering = undefined;
    this.#failures.clear();
    this.#failure = undefined;
    this.#epoch++;
    return lost;
  }

  /** Receives until `close`. Never rejects: what goes wrong ends the waits. */
  async run(): Promise<void> {
    try {
      for (;;) {
        const received = await this.#server.receive();
        this.#seenAt.set(received.message.rank, performance.now());
        this.#dispatch(received);
      }
    } catch (error) {
      this.#running = false;
      if (!this.#closing) this.fail(error instanceof Error ? error : new InvariantError(String(error)));
    }
  }

  /** One message of this kind from each of these ranks (default: all), by rank. */
  async hear<Kind extends 'hello' | 'ready'>(
    kind: Kind,
    deadlineMs: number,
    doing: string,
    from: readonly number[] = this.#all(),
  ): Promise<Extract<ToCoordinator, { kind: Kind }>[]> {
    const answers = await this.#wait(kind, deadlineMs, doing, from);
    return answers.map(({ message }) => {
      invariant(isKind(message, kind), `waited for ${kind}, got ${message.kind}`);
      return message;
    });
  }

  /** Sends one request, the same to every rank, and returns the replies by rank. The payload is copied. */
  async ask(request: WithoutId<RankRequest>, deadlineMs: number, payload?: Float32Array): Promise<RankReply[]> {
    const id = this.#nextId++;
    const answered = this.#wait(id, deadlineMs, `during ${request.kind} ${id}`, this.#all());
    const [answers] = await Promise.all([answered, this.tell(() => ({ ...request, id }), payload)]);
    return answers.map(({ message, payload }) => {
      invariant(message.kind === 'reply', `waited for the reply to request ${id}, got ${message.kind}`);
      return { reply: message, payload: payload ?? new Float32Array(0) };
    });
  }

  /** The same of one rank alone. */
  async askOne(
    rank: number,
    request: WithoutId<RankRequest>,
    deadlineMs: number,
    payload?: Float32Array,
  ): Promise<RankReply> {
    const id = this.#nextId++;
    const answered = this.#wait(id, deadlineMs, `during ${request.kind} ${id}`, [rank]);
    const [[answer]] = await Promise.all([answered, this.#server.send(rank, { ...request, id }, payload)]);
    invariant(answer?.message.kind === 'reply', `waited for the reply to request ${id}, got ${answer?.message.kind}`);
    return { reply: answer.message, payload: answer.payload ?? new Float32Array(0) };
  }

  /** Sends a message to every rank; a rank that cannot take it counts as failed. */
  async tell(messageFor: (rank: number) => ToRank, payload?: Float32Array): Promise<void> {
    const epoch = this.#epoch;
    const ranks = this.#all();
    const results = await Promise.allSettled(ranks.map((rank) => this.#server.send(rank, messageFor(rank), payload)));
    for (const [rank, result] of results.entries())
      if (result.status === 'rejected' && epoch === this.#epoch) this.#note(rank, { late: String(result.reason) });
  }

  /** Call when a rank's process has ended. */
  exited(rank: number, exit: ProcessExit): void {
    this.#note(rank, { exit });
  }

  /** Ends every wait, now and later, with this error. */
  fail(error: Error): void {
    const isFirst = this.#failure === undefined;
    this.#failure ??= error;
    for (const { reject } of this.#takeWaiters()) reject(this.#failure);
    if (isFirst && !this.#closing) this.onFailure(this.#failure);
  }

  get failed(): boolean {
    return this.#failure !== undefined;
  }

  /** From here on processes may end and the socket may close; who still waits is told so. */
  close(): void {
    this.#closing = true;
    for (const { doing, reject } of this.#takeWaiters()) reject(new PeerError(`the cluster was stopped ${doing}`));
  }

  #takeWaiters(): Waiter[] {
    const waiters = [...this.#waiters.values()];
    this.#waiters.clear();
    return waiters;
  }

  #all(): number[] {
    return Array.from({ length: this.#worldSize }, (_, rank) => rank);
  }

  async #wait(
    key: AnswerKey,
    deadlineMs: number,
    doing: string,
    from: readonly number[],
  ): Promise<Received<ToCoordinator>[]> {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#closing) throw new InvariantError(`the cluster is stopped; it cannot answer ${doing}`);
    if (from.length === 0) return [];
    const late = setTimeout(() => this.#late(key, deadlineMs), deadlineMs);
    try {
      return await new Promise((resolve, reject) => {
        this.#waiters.set(key, { from, answers: new Map(), doing, resolve, reject });
      });
    } finally {
      clearTimeout(late);
    }
  }

  /** Blames every rank that has not answered. */
  #late(key: AnswerKey, deadlineMs: number): void {
    const waiter = this.#waiters.get(key);
    if (waiter === undefined) return;
    const refusal = this.#server.lastRefusal;
    const hint = key === 'hello' && refusal !== null ? ` (a message was refused: ${refusal})` : '';
    for (const rank of waiter.from) {
      if (waiter.answers.has(rank)) continue;
      const advice = (key === 'hello' ? this.advice(rank) : undefined) ?? 'is it frozen or overloaded?';
      this.#note(rank, { late: `no answer in ${deadlineMs} ms ${waiter.doing}${hint}; ${advice}` });
    }
  }

  #dispatch(received: Received<ToCoordinator>): void {
    const { message } = received;
    switch (message.kind) {
      case 'hello':
        return this.#answer(message.kind, received);
      case 'loading':
        return message.epoch === this.#epoch ? this.onLoading(message.rank, message.layers) : undefined;
      case 'ready':
        return message.epoch === this.#epoch ? this.#answer(message.kind, received) : undefined;
      case 'reply':
        return this.#answer(message.id, received);
      case 'failed':
        return message.epoch === this.#epoch ? this.#note(message.rank, { failed: message }) : undefined;
    }
  }

  #answer(key: AnswerKey, received: Received<ToCoordinator>): void {
    const waiter = this.#waiters.get(key);
    // An answer to a wait that has ended by failure or deadline.
    if (waiter?.from.includes(received.message.rank) !== true) return;
    waiter.answers.set(received.message.rank, received);
    if (waiter.answers.size < waiter.from.length) return;
    this.#waiters.delete(key);
    waiter.resolve([...waiter.answers.values()].sort((a, b) => a.message.rank - b.message.rank));
  }

  #note(rank: number, news: { failed?: Failed; exit?: ProcessExit; late?: string }): void {
    if (this.#closing) return;
    // Also after the failure: whoever starts the next epoch has to know every rank that was lost.
    this.#failures.set(rank, { rank, ...this.#identify(rank), ...this.#failures.get(rank), ...news });
    if (this.#failure !== undefined) return;
    // A signal needs no explanation; whoever gets one explains the complaints of the others.
    const isClear = news.exit !== undefined && news.exit.signal !== null;
    if (this.#gathering !== undefined && !isClear) return;
    clearTimeout(this.#gathering);
    const [waiter] = this.#waiters.values();
    const doing = waiter?.doing ?? 'between requests';
    const explain = (): void => this.fail(explainFailures([...this.#failures.values()], doing));
    this.#gathering = setTimeout(explain, isClear ? 0 : gatherMs);
  }
}

/** A rank that only said that another did not answer keeps its weights and joins again. */
function isLost({ failed, exit, late }: RankFailure): boolean {
  return exit !== undefined || late !== undefined || failed?.error !== 'PeerError';
}

/** Omit, applied to each member of a union. */
export type WithoutId<Message> = Message extends unknown ? Omit<Message, 'id'> : never;

function isKind<Kind extends ToCoordinator['kind']>(
  message: ToCoordinator,
  kind: Kind,
): message is Extract<ToCoordinator, { kind: Kind }> {
  return message.kind === kind;
}
