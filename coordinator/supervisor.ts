/**
 * A cluster that is started again when a rank fails, as often as the configuration allows, and what to tell about it.
 * All ranks are started anew, so their caches are empty afterwards: the scheduler computes its sequences again.
 * Read next: cluster.ts (one run of the ranks), scheduler.ts (who asks for recovery).
 */
import { setTimeout as after } from 'node:timers/promises';
import type { Step } from '../collective/messages.ts';
import { Cluster, type ClusterOptions, type StepResult } from './cluster.ts';

export type ClusterState = 'ok' | 'recovering' | 'failed';

export interface ClusterEvent {
  /** ISO 8601 */
  readonly time: string;
  readonly kind: 'started' | 'lost' | 'recovered' | 'failed';
  /** Undefined where it concerns all. */
  readonly rank: number | undefined;
  readonly text: string;
}

export interface RankHealth {
  readonly rank: number;
  readonly pid: number;
  readonly state: 'ok' | 'starting' | 'lost';
  /** Since the rank's last answer. */
  readonly lastSeenMs: number;
  readonly restarts: number;
  readonly error?: string;
}

/** Restarts are counted over this long: a server that lives for months may lose more ranks than its ceiling. */
const restartWindowMs = 600_000;
const keptEvents = 200;
const maxBackoffMs = 30_000;

export class Supervisor implements AsyncDisposable {
  readonly #options: ClusterOptions;
  #cluster: Cluster;
  #state: ClusterState = 'ok';
  #error: Error | undefined;
  #lostRank: number | undefined;
  #recovery: Promise<void> | undefined;
  #restartTimes: number[] = [];
  readonly #restarts = new Map<number, number>();
  readonly #stop = new AbortController();
  #lastSeen = performance.now();
  readonly events: ClusterEvent[] = [];

  private constructor(options: ClusterOptions, cluster: Cluster) {
    this.#options = options;
    this.#cluster = cluster;
    this.#note('started', undefined, `${cluster.plan.worldSize} ranks, scheme ${cluster.plan.scheme}`);
  }

  /** @throws as Cluster.start: what fails at the first start is not tried again */
  static async start(options: Omit<ClusterOptions, 'onFailure'>): Promise<Supervisor> {
    let failed: (error: Error) => void = () => undefined;
    const watched = { ...options, onFailure: (error: Error) => failed(error) };
    const supervisor = new Supervisor(watched, await Cluster.start(watched));
    failed = (error) => {
      // Recovery reports its own failure to whoever asks; nobody may be asking now.
      supervisor.recover(error).catch(() => undefined);
    };
    return supervisor;
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

  get state(): ClusterState {
    return this.#state;
  }

  /** Why requests cannot be served; undefined while they can. */
  get error(): Error | undefined {
    return this.#error;
  }

  /** @throws the failure also while the cluster recovers: the caller must not take an empty cache for the one it filled */
  async step(step: Omit<Step, 'kind' | 'id'>): Promise<StepResult> {
    if (this.#error !== undefined) throw this.#error;
    const result = await this.#cluster.step(step);
    this.#lastSeen = performance.now();
    return result;
  }

  /** Resolves when a new cluster with an empty cache is ready. @throws the failure when no restart is left or helps */
  recover(error: Error): Promise<void> {
    if (this.#state === 'failed') return Promise.reject(this.#error ?? error);
    this.#recovery ??= this.#restart(error).finally(() => {
      this.#recovery = undefined;
    });
    return this.#recovery;
  }

  health(): RankHealth[] {
    return this.#cluster.ranks.map(({ rank, pid }) => {
      const isLost = this.#state !== 'ok' && (this.#lostRank ?? rank) === rank;
      return {
        rank,
        pid,
        state: isLost ? 'lost' : this.#state === 'ok' ? 'ok' : 'starting',
        lastSeenMs: Math.round(performance.now() - this.#lastSeen),
        restarts: this.#restarts.get(rank) ?? 0,
        ...(isLost && this.#error !== undefined ? { error: this.#error.message } : {}),
      };
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new Error('the cluster was stopped'));
    await this.#recovery?.catch(() => undefined);
    await this.#cluster[Symbol.asyncDispose]();
  }

  async #restart(cause: Error): Promise<void> {
    let error = cause;
    for (;;) {
      this.#lose(error);
      const { restarts, backoffMs } = this.#options.config.faults;
      const now = performance.now();
      this.#restartTimes = this.#restartTimes.filter((time) => now - time < restartWindowMs);
      if (this.#restartTimes.length >= restarts) throw this.#giveUp(error);
      const wait = Math.min(maxBackoffMs, backoffMs * 2 ** this.#restartTimes.length);
      this.#restartTimes.push(now);
      await this.#cluster[Symbol.asyncDispose]();
      try {
        // Another attempt is pointless once nobody wants the cluster.
        await after(wait, undefined, { signal: this.#stop.signal });
        this.#cluster = await Cluster.start({ ...this.#options, signal: this.#stop.signal });
      } catch (failure) {
        error = failure instanceof Error ? failure : new Error(String(failure));
        if (this.#stop.signal.aborted) throw this.#giveUp(error);
        continue;
      }
      this.#win();
      return;
    }
  }

  #lose(error: Error): void {
    this.#state = 'recovering';
    this.#error = error;
    const named = /^rank (\d+)/.exec(error.message);
    this.#lostRank = named === null ? undefined : Number(named[1]);
    this.#note('lost', this.#lostRank, error.message);
    this.#options.log(`lost: ${error.message}`);
  }

  #win(): void {
    const rank = this.#lostRank;
    if (rank !== undefined) this.#restarts.set(rank, (this.#restarts.get(rank) ?? 0) + 1);
    this.#state = 'ok';
    this.#error = undefined;
    this.#lostRank = undefined;
    this.#lastSeen = performance.now();
    const text = `ranks are ready again after ${Math.round(this.#cluster.loadMs)} ms of loading`;
    this.#note('recovered', rank, text);
    this.#options.log(`recovered: ${text}`);
  }

  #giveUp(error: Error): Error {
    this.#state = 'failed';
    this.#error = error;
    if (!this.#stop.signal.aborted) this.#note('failed', this.#lostRank, `no restart is left: ${error.message}`);
    return error;
  }

  #note(kind: ClusterEvent['kind'], rank: number | undefined, text: string): void {
    this.events.push({ time: new Date().toISOString(), kind, rank, text });
    if (this.events.length > keptEvents) this.events.shift();
  }
}
