/**
 * A cluster whose ranks are started again when they fail, as often as the configuration allows, and what to tell about
 * it. The other ranks keep their weights, but no cache outlives a fault: the scheduler computes its sequences again.
 * When a rank cannot be had back the cluster is planned anew on fewer ranks, if that is allowed, or it has failed; a
 * failed cluster takes a rank on another machine back whenever it returns.
 * Read next: cluster.ts (one run of the ranks), restarts.ts (how often), scheduler.ts (who asks for recovery).
 */
import { setTimeout as after } from 'node:timers/promises';
import { asError, ConfigError, PeerError } from '../config/errors.ts';
import type { Offer } from '../collective/greetings.ts';
import type { Step } from '../collective/messages.ts';
import type { StepResult } from './ask-ranks.ts';
import { type ClusterEvent, EventLog } from './cluster-events.ts';
import { Cluster, type ClusterOptions } from './cluster.ts';
import { RankAbsent } from './failures.ts';
import { healthOf, type RankHealth } from './rank-health.ts';
import { configOf, missingRank, type Reduced } from './remote/reduced.ts';
import { Restarts } from './restarts.ts';

/** degraded: serves, but on fewer ranks than configured. */
export type ClusterState = 'ok' | 'degraded' | 'recovering' | 'failed';

export interface SupervisorOptions extends Omit<ClusterOptions, 'onFailure'> {
  /** Told of each event as it happens. */
  readonly onEvent?: ((event: ClusterEvent) => void) | undefined;
}

/** After a rank could not be taken back; each try costs an outage. */
const noGrowthMs = 60_000;
/** Until the address of the cluster that ended is free. */
const bindWithinMs = 5_000;

export class Supervisor implements AsyncDisposable {
  readonly #options: ClusterOptions;
  #cluster: Cluster;
  /** Ranks of the cluster file that serve, ascending. */
  #numbers: readonly number[];
  /** The cluster was ended to be planned anew on these ranks, and that failed. */
  #sought: readonly number[] | undefined;
  #reduced: Reduced | undefined;
  #noGrowthUntil = 0;
  #state: ClusterState = 'ok';
  #error: Error | undefined;
  #lost: readonly number[] = [];
  #recovery: Promise<void> | undefined;
  #cacheEpoch = 0;
  readonly #restarts: Restarts;
  readonly #stop = new AbortController();
  /** Waits for ranks on other machines after the cluster has failed. Never rejects. */
  #returning: Promise<void> = Promise.resolve();
  /** What `state` is whenever the cluster works. */
  #working: 'ok' | 'degraded' = 'ok';
  readonly #log: EventLog;

  private constructor(options: SupervisorOptions, cluster: Cluster) {
    this.#options = options;
    this.#restarts = new Restarts(options.config.faults);
    this.#log = new EventLog(options.onEvent);
    this.#cluster = cluster;
    this.#numbers = options.config.ranks.map((_, rank) => rank);
    this.#log.note('started', undefined, `${cluster.plan.worldSize} ranks, scheme ${cluster.plan.scheme}`);
  }

  /** @throws as Cluster.start: what fails at the first start is not tried again */
  static async start(options: SupervisorOptions): Promise<Supervisor> {
    let failed: (error: Error) => void = () => undefined;
    const watched = { ...options, onFailure: (error: Error) => failed(error) };
    const supervisor = new Supervisor(watched, await Cluster.start(watched));
    failed = (error) => {
      // Recovery reports its own failure to whoever asks; nobody may be asking now.
      supervisor.recover(error).catch(() => undefined);
    };
    return supervisor;
  }

  get events(): readonly ClusterEvent[] {
    return this.#log.latest;
  }

  /** The one that runs, or ran last. */
  get cluster(): Cluster {
    return this.#cluster;
  }

  get options(): Cluster['options'] {
    return this.#cluster.options;
  }

  get vocabSize(): number {
    return this.#cluster.vocabSize;
  }

  get plan(): Cluster['plan'] {
    return this.#cluster.plan;
  }

  /** Another number whenever the cache was lost: what a caller knows of it holds for one epoch. */
  get cacheEpoch(): number {
    return this.#cacheEpoch;
  }

  get state(): ClusterState {
    return this.#state;
  }

  /** Why requests cannot be served; undefined while they can. */
  get error(): Error | undefined {
    return this.#error;
  }

  /** @throws the failure also while the cluster recovers: the caller must not take an empty cache for the one it filled */
  async step(step: Omit<Step, 'kind' | 'id'>, memory?: Float32Array): Promise<StepResult> {
    if (this.#error !== undefined) throw this.#error;
    return this.#cluster.step(step, memory);
  }

  /** Whether requests are served now. */
  get isWorking(): boolean {
    return this.#error === undefined;
  }

  /** Resolves when all ranks are there again, with empty caches. @throws the failure when no restart is left or helps */
  recover(error: Error): Promise<void> {
    if (this.#state === 'failed') return Promise.reject(this.#error ?? error);
    this.#recovery ??= this.#restart(error).finally(() => {
      this.#recovery = undefined;
    });
    return this.#recovery;
  }

  health(): RankHealth[] {
    return healthOf(this.#cluster, this.#error, this.#lost, this.#restarts);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const stopped = new Error('the cluster was stopped');
    this.#stop.abort(stopped);
    // What waits for a rank is told; a cluster that works is simply stopped.
    if (!this.isWorking) this.#cluster.giveUp(stopped);
    await this.#recovery?.catch(() => undefined);
    await this.#returning;
    await this.#cluster[Symbol.asyncDispose]();
  }

  async #restart(cause: Error): Promise<void> {
    const startedAt = performance.now();
    let error = cause;
    for (let attempt = 0; ; attempt++) {
      this.#lose(error);
      const isAbsent = error instanceof ConfigError || error instanceof RankAbsent;
      const isHopeless = isAbsent || this.#restarts.isNoneLeft;
      try {
        if (isHopeless) await this.#shrink(error);
        else await this.#tryAgain(attempt);
      } catch (failure) {
        if (isHopeless || this.#stop.signal.aborted) {
          const error = this.#giveUp(failure);
          if (this.#cluster.hasLostRemote || this.#sought !== undefined) this.#returning = this.#awaitReturn();
          throw error;
        }
        error = asError(failure);
        continue;
      }
      this.#win(Math.round(performance.now() - startedAt));
      return;
    }
  }

  /** Requests fail meanwhile; each attempt takes or waits `rejoinMs`. */
  async #awaitReturn(): Promise<void> {
    const failedAt = performance.now();
    const whole = this.#options.config.ranks.map((_, rank) => rank);
    const sought = this.#sought;
    for (let attempt = 0; !this.#stop.signal.aborted; attempt++) {
      const startedAt = performance.now();
      try {
        // Which of them come back is not known: those that were to serve, or all.
        if (sought !== undefined) await this.#planAnew(attempt % 2 === 0 ? sought : whole);
        else await this.#cluster.recover();
        return this.#win(Math.round(performance.now() - failedAt));
      } catch (failure) {
        this.#error = asError(failure);
      }
      const pauseMs = Math.max(0, startedAt + this.#limits.rejoinMs - performance.now());
      // A stop ends the pause; the loop's condition sees it.
      await after(pauseMs, undefined, { signal: this.#stop.signal }).catch(() => undefined);
    }
  }

  get #limits(): ClusterOptions['config']['faults'] {
    return this.#options.config.faults;
  }

  async #tryAgain(attempt: number): Promise<void> {
    // Another attempt is pointless once nobody wants the cluster.
    await after(this.#restarts.begin(attempt), undefined, { signal: this.#stop.signal });
    await this.#cluster.recover();
  }

  /** A new cluster without the ranks that are lost. @throws the error when that is not allowed or leaves none */
  async #shrink(error: Error): Promise<void> {
    const numbers = this.#numbers.filter((_, rank) => !this.#lost.includes(rank));
    if (!this.#limits.allowFewerRanks || numbers.length === 0 || numbers.length === this.#numbers.length) throw error;
    await this.#planAnew(numbers);
    this.#restarts.forget();
    this.#log.note('degraded', undefined, `serves on ${this.#howMany()} ranks: ${error.message}`);
  }

  /** A rank that was missing is there: plans with it. Requests wait, and are computed again. */
  #grow(offer: Offer): void {
    const number = this.#reduced === undefined ? null : missingRank(this.#reduced, offer);
    if (number === null || this.#state !== 'degraded' || performance.now() < this.#noGrowthUntil) return;
    this.#state = 'recovering';
    this.#error = new PeerError(`rank ${number} has come back; the cluster is planned anew`);
    this.#recovery = this.#growBy(number).finally(() => {
      this.#recovery = undefined;
    });
    // Whoever has a request asks for it; nobody may have one now.
    this.#recovery.catch(() => undefined);
  }

  async #growBy(number: number): Promise<void> {
    const before = this.#numbers;
    const startedAt = performance.now();
    try {
      await this.#planAnew([...before, number].sort((a, b) => a - b));
    } catch (error) {
      this.#options.log(`rank ${number} could not be taken back: ${asError(error).message}`);
      this.#noGrowthUntil = performance.now() + noGrowthMs;
      await this.#planAnew(before).catch((failure: unknown) => {
        const given = this.#giveUp(failure);
        this.#returning = this.#awaitReturn();
        throw given;
      });
    }
    if (this.#working === 'degraded') this.#log.note('degraded', undefined, `serves on ${this.#howMany()} ranks`);
    this.#win(Math.round(performance.now() - startedAt));
  }

  /** Ends the cluster and starts one of these ranks of the cluster file. @throws as Cluster.start; then there is none */
  async #planAnew(numbers: readonly number[]): Promise<void> {
    this.#sought = numbers;
    await this.#cluster[Symbol.asyncDispose]();
    const parts = configOf(this.#options.config, numbers, (offer) => this.#grow(offer));
    this.#cluster = await Cluster.start({ ...this.#options, ...parts, bindWithinMs, signal: this.#stop.signal });
    this.#sought = undefined;
    this.#numbers = numbers;
    this.#reduced = parts.reduced;
    this.#working = parts.reduced === undefined ? 'ok' : 'degraded';
  }

  #howMany(): string {
    return `${this.#numbers.length} of ${this.#options.config.ranks.length}`;
  }

  #lose(error: Error): void {
    this.#state = 'recovering';
    this.#cacheEpoch++;
    this.#error = error;
    const named = /^rank (\d+)/.exec(error.message);
    const { lostRanks } = this.#cluster;
    this.#lost = lostRanks.length > 0 || named === null ? lostRanks : [Number(named[1])];
    this.#log.note('lost', this.#lost[0], error.message);
    this.#options.log(`lost: ${error.message}`);
  }

  #win(ms: number): void {
    this.#restarts.succeeded(this.#lost);
    const text = `all ranks are ready again after ${ms} ms`;
    this.#log.note('recovered', this.#lost[0], text);
    this.#options.log(`recovered: ${text}`);
    // Once more: what ended while ranks were lost must not be taken for what the new cache holds.
    this.#cacheEpoch++;
    this.#state = this.#working;
    this.#error = undefined;
    this.#lost = [];
  }

  #giveUp(failure: unknown): Error {
    const error = asError(failure);
    this.#state = 'failed';
    this.#error = error;
    if (!this.#stop.signal.aborted) this.#log.note('failed', this.#lost[0], `no restart is left: ${error.message}`);
    return error;
  }
}
