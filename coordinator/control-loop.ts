/**
 * The coordinator's conversation with its ranks: one loop receives every message and hands it to whoever waits for it.
 * A wait ends with all ranks' answers, with a deadline, or with the first failure of any rank; after a failure every
 * wait ends with the same error. Knows nothing of models. Read next: cluster.ts, which asks the questions.
 */
import { setTimeout as after } from 'node:timers/promises';
import { InvariantError, PeerError, invariant } from '../config/errors.ts';
import type { Failed, RankRequest, Reply, ToCoordinator, ToRank } from '../collective/messages.ts';
import type { ControlServer, Received } from '../collective/zmq.ts';
import { explainFailures, type ProcessExit, type RankFailure } from './failures.ts';

/** Between the first sign of a failure and its report: time for the process's end and its own words to meet. */
const gatherMs = 30;

export interface RankReply {
  readonly reply: Reply;
  readonly payload: Float32Array;
}

/** Someone who waits for one answer of each rank. */
interface Waiter {
  readonly answers: Map<number, Received<ToCoordinator>>;
  readonly doing: string;
  readonly resolve: (answers: Received<ToCoordinator>[]) => void;
  readonly reject: (error: Error) => void;
}

type AnswerKey = 'hello' | 'ready' | number;

export class ControlLoop {
  readonly #server: ControlServer;
  readonly #worldSize: number;
  readonly #pidOf: (rank: number) => number | undefined;
  /** Called once, with the failure that ends every wait. */
  onFailure: (error: Error) => void = () => undefined;
  readonly #waiters = new Map<AnswerKey, Waiter>();
  readonly #failures = new Map<number, RankFailure>();
  #failure: Error | undefined;
  #gathering = false;
  #closing = false;
  #nextId = 0;

  constructor(server: ControlServer, worldSize: number, pidOf: (rank: number) => number | undefined) {
    this.#server = server;
    this.#worldSize = worldSize;
    this.#pidOf = pidOf;
  }

  /** Receives until `close`. Never rejects: what goes wrong ends the waits. */
  async run(accept: (message: ToCoordinator) => boolean): Promise<void> {
    try {
      for (;;) {
        const received = await this.#server.receive();
        if (accept(received.message)) this.#dispatch(received);
      }
    } catch (error) {
      if (!this.#closing) this.fail(error instanceof Error ? error : new InvariantError(String(error)));
    }
  }

  /** One message of this kind from every rank, by rank. */
  async hear<Kind extends 'hello' | 'ready'>(
    kind: Kind,
    deadlineMs: number,
    doing: string,
  ): Promise<Extract<ToCoordinator, { kind: Kind }>[]> {
    const answers = await this.#wait(kind, deadlineMs, doing);
    return answers.map(({ message }) => {
      invariant(isKind(message, kind), `waited for ${kind}, got ${message.kind}`);
      return message;
    });
  }

  /** Sends one request to every rank and returns the replies by rank. */
  async ask(request: WithoutId<RankRequest>, deadlineMs: number): Promise<RankReply[]> {
    const id = this.#nextId++;
    const answered = this.#wait(id, deadlineMs, `during ${request.kind} ${id}`);
    const [answers] = await Promise.all([answered, this.tell(() => ({ ...request, id }))]);
    return answers.map(({ message, payload }) => {
      invariant(message.kind === 'reply', `waited for the reply to request ${id}, got ${message.kind}`);
      return { reply: message, payload: payload ?? new Float32Array(0) };
    });
  }

  /** Sends a message to every rank; a rank that cannot take it counts as failed. */
  async tell(messageFor: (rank: number) => ToRank): Promise<void> {
    const ranks = Array.from({ length: this.#worldSize }, (_, rank) => rank);
    const results = await Promise.allSettled(ranks.map((rank) => this.#server.send(rank, messageFor(rank))));
    for (const [rank, result] of results.entries())
      if (result.status === 'rejected') this.#note(rank, { late: String(result.reason) });
  }

  /** Call when a rank's process has ended. */
  exited(rank: number, exit: ProcessExit): void {
    if (!this.#closing) this.#note(rank, { exit });
  }

  /** Ends every wait, now and later, with this error. */
  fail(error: Error): void {
    const isFirst = this.#failure === undefined;
    this.#failure ??= error;
    for (const { reject } of this.#takeWaiters()) reject(this.#failure);
    if (isFirst) this.onFailure(this.#failure);
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

  async #wait(key: AnswerKey, deadlineMs: number, doing: string): Promise<Received<ToCoordinator>[]> {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#closing) throw new InvariantError(`the cluster is stopped; it cannot answer ${doing}`);
    const timer = new AbortController();
    const answered = new Promise<Received<ToCoordinator>[]>((resolve, reject) => {
      this.#waiters.set(key, { answers: new Map(), doing, resolve, reject });
    });
    const late = after(deadlineMs, undefined, { signal: timer.signal, ref: true }).then(
      () => this.#late(key, deadlineMs),
      () => undefined,
    );
    try {
      return await answered;
    } finally {
      timer.abort();
      await late;
    }
  }

  /** Blames every rank that has not answered. */
  #late(key: AnswerKey, deadlineMs: number): void {
    const waiter = this.#waiters.get(key);
    if (waiter === undefined) return;
    const refusal = this.#server.lastRefusal;
    const hint = key === 'hello' && refusal !== null ? ` (a message was refused: ${refusal})` : '';
    for (let rank = 0; rank < this.#worldSize; rank++)
      if (!waiter.answers.has(rank))
        this.#note(rank, { late: `no answer in ${deadlineMs} ms ${waiter.doing}${hint}; is it frozen or overloaded?` });
  }

  #dispatch(received: Received<ToCoordinator>): void {
    const { message } = received;
    switch (message.kind) {
      case 'hello':
      case 'ready':
        return this.#answer(message.kind, received);
      case 'reply':
        return this.#answer(message.id, received);
      case 'failed':
        return this.#note(message.rank, { failed: message });
    }
  }

  #answer(key: AnswerKey, received: Received<ToCoordinator>): void {
    const waiter = this.#waiters.get(key);
    // An answer to a wait that has ended by failure or deadline.
    if (waiter === undefined) return;
    waiter.answers.set(received.message.rank, received);
    if (waiter.answers.size < this.#worldSize) return;
    this.#waiters.delete(key);
    waiter.resolve([...waiter.answers.values()].sort((a, b) => a.message.rank - b.message.rank));
  }

  #note(rank: number, news: { failed?: Failed; exit?: ProcessExit; late?: string }): void {
    if (this.#failure !== undefined) return;
    this.#failures.set(rank, { rank, pid: this.#pidOf(rank), ...this.#failures.get(rank), ...news });
    if (this.#gathering) return;
    this.#gathering = true;
    const [waiter] = this.#waiters.values();
    const doing = waiter?.doing ?? 'between requests';
    setTimeout(() => this.fail(explainFailures([...this.#failures.values()], doing)), gatherMs);
  }
}

/** Omit, applied to each member of a union. */
export type WithoutId<Message> = Message extends unknown ? Omit<Message, 'id'> : never;

function isKind<Kind extends ToCoordinator['kind']>(
  message: ToCoordinator,
  kind: Kind,
): message is Extract<ToCoordinator, { kind: Kind }> {
  return message.kind === kind;
}
