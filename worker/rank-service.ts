/**
 * Reads what the coordinator says while the rank computes. Requests are answered one after another; `rejoin` and `stop`
 * are obeyed at once: they end a collective that waits for a rank that is gone. Weights stay through a rejoin, and
 * nothing that belongs to an earlier epoch is answered. Read next: rank-worker.ts (requests), main.ts (the process).
 */
import { InvariantError, PeerError, messageOf } from '../config/errors.ts';
import { createGroup } from '../collective/create-group.ts';
import type { RankRequest, ToRank } from '../collective/messages.ts';
import type { Rejoin, Setup } from '../collective/setup.ts';
import { RejoinableGroup } from '../collective/rejoinable-group.ts';
import type { RingBinding } from '../collective/zeromq-group.ts';
import type { ControlClient } from '../collective/control-client.ts';
import { Misbehaviour } from './misbehaviour.ts';
import { RankWorker } from './rank-worker.ts';

export class RankService implements AsyncDisposable {
  readonly #control: ControlClient;
  readonly #ring: RingBinding;
  readonly #group: RejoinableGroup;
  readonly #misbehaviour: Misbehaviour | undefined;
  /** The request that ended this process; null: none. */
  failedRequest: number | null = null;
  #setup: Setup;
  #worker: RankWorker | undefined;
  /** What runs and what waits behind it. Never rejects. */
  #work: Promise<void> = Promise.resolve();
  #abandon = new AbortController();
  #fatal: Error | undefined;
  #onFatal: (error: Error) => void = () => undefined;

  constructor(control: ControlClient, ring: RingBinding, setup: Setup) {
    this.#control = control;
    this.#ring = ring;
    this.#setup = setup;
    this.#group = new RejoinableGroup(setup.rank, setup.worldSize);
    this.#misbehaviour = setup.chaos ? new Misbehaviour() : undefined;
  }

  get epoch(): number {
    return this.#setup.epoch;
  }

  /** Until `stop`. @throws what this process cannot go on after; failures of other ranks it survives */
  async run(): Promise<void> {
    this.#enqueue(null, () => this.#join());
    for (;;) {
      const { message, payload } = await this.#orFatal(this.#control.receive());
      if (message.kind === 'stop') return;
      this.#take(message, payload);
    }
  }

  /** Waits until no kernel runs, then frees what they use. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#abandon.abort();
    await this.#group.leave();
    await this.#work;
    await this.#group.leave();
    await this.#worker?.[Symbol.asyncDispose]();
  }

  #take(message: Exclude<ToRank, { kind: 'stop' }>, payload: Float32Array | undefined): void {
    const { rank } = this.#setup;
    switch (message.kind) {
      case 'setup':
      case 'refused':
        throw new PeerError(`rank ${rank}: ${message.kind} after the setup; ranks are set up once`);
      case 'rejoin':
        return this.#rejoin(message);
      case 'probe':
        return;
      case 'chaos':
        if (this.#misbehaviour === undefined)
          throw new PeerError(`rank ${rank}: ${message.action} was asked for, but this is no fault drill`);
        return this.#misbehaviour.obey(message);
      case 'step':
      case 'moments':
      case 'calibration':
      case 'collectiveCheck':
      case 'computeCheck':
      case 'linkCheck':
      case 'echo':
        this.#enqueue(message.id, () => this.#answer(message, payload));
    }
  }

  #rejoin({ epoch, ringEndpoints, ringKeys, hosts }: Rejoin): void {
    this.#setup = { ...this.#setup, epoch, ringEndpoints, ringKeys, hosts };
    this.#abandon.abort();
    this.#abandon = new AbortController();
    this.#misbehaviour?.nextEpoch();
    // Makes the operation that runs fail; the join waits behind it.
    const left = this.#group.leave();
    this.#enqueue(null, async () => {
      await left;
      await this.#join();
    });
  }

  /** Joins the ring of the present epoch; the first time, also loads. */
  async #join(): Promise<void> {
    const { signal } = this.#abandon;
    const setup = this.#setup;
    const joined = await createGroup(this.#ring, setup, { signal, tamper: this.#misbehaviour?.tamper });
    if (signal.aborted) return joined[Symbol.asyncDispose]();
    this.#group.enter(joined);
    const { rank, epoch } = setup;
    this.#worker ??= await RankWorker.load(setup, this.#group, (layers) =>
      this.#control.send({ kind: 'loading', rank, epoch, layers }),
    );
    if (signal.aborted) return;
    await this.#control.send({ ...this.#worker.ready, epoch: setup.epoch, transport: joined.transport });
  }

  async #answer(request: RankRequest, given: Float32Array | undefined): Promise<void> {
    if (this.#worker === undefined)
      throw new InvariantError(`${request.kind} ${request.id} before this rank was ready`);
    await this.#misbehaviour?.hesitate();
    const { reply, payload } = await this.#worker.answer(request, given);
    // The worker writes it again only for a request that the coordinator sends once it has this reply.
    await (payload === undefined ? this.#control.send(reply) : this.#control.sendLent(reply, payload));
  }

  /** @param id of the request; null: joining. The work is skipped when the epoch changes before its turn. */
  #enqueue(id: number | null, work: () => Promise<void>): void {
    const { epoch } = this.#setup;
    this.#work = this.#work.then(async () => {
      if (epoch !== this.#setup.epoch || this.#fatal !== undefined) return;
      try {
        await work();
      } catch (error) {
        await this.#fail(id, epoch, error);
      }
    });
  }

  async #fail(id: number | null, epoch: number, error: unknown): Promise<void> {
    // It was given up because of a rejoin or a stop: nobody waits for it.
    if (epoch !== this.#setup.epoch || (this.#abandon.signal.aborted && error instanceof PeerError)) return;
    // Without weights there is nothing to keep: the process ends, and another takes its place.
    if (!(error instanceof PeerError) || this.#worker === undefined) return this.#end(id, error);
    const { rank } = this.#setup;
    try {
      await this.#control.send({ kind: 'failed', rank, epoch, id, error: 'PeerError', message: error.message });
    } catch (sendError) {
      this.#end(id, sendError);
    }
  }

  #end(id: number | null, error: unknown): void {
    this.#fatal = error instanceof Error ? error : new InvariantError(messageOf(error));
    this.failedRequest = id;
    this.#onFatal(this.#fatal);
  }

  /** Not Promise.race: that would keep a reaction per message on a promise that never settles. */
  #orFatal<T>(receiving: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#onFatal = reject;
      if (this.#fatal !== undefined) reject(this.#fatal);
      receiving.then(resolve, reject);
    });
  }
}
