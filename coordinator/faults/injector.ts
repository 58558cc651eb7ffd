/**
 * Breaks one rank at a random step and times what follows: the coordinator's notice, and all ranks ready again.
 * Read next: drill.ts.
 */
import { setTimeout as after } from 'node:timers/promises';
import { PeerError, invariant } from '../../config/errors.ts';
import type { RandomSource } from '../sampler.ts';
import type { ClusterEvent } from '../cluster-events.ts';
import type { Supervisor } from '../supervisor.ts';

export const drillNames = ['kill', 'freeze', 'slow', 'garble', 'cut', 'memory'] as const;
export type DrillName = (typeof drillNames)[number];

/** One fault and what became of it. */
export interface Fault {
  readonly drill: DrillName;
  readonly rank: number;
  /** Whether its process is one of a `tpla worker`, on another machine or as if it were. */
  readonly isRemote: boolean;
  /** From the fault to the coordinator's notice; undefined where nothing needed recovery. */
  readonly detectedMs: number | undefined;
  /** From the fault until all ranks were ready again. */
  readonly recoveredMs: number | undefined;
  /** What the coordinator said was wrong. */
  readonly cause: string | undefined;
}

/** Steps between two faults; at most as many more as an answer has tokens, which a recovery may have to compute again. */
const fewestSteps = 3;
const mostSteps = 40;
/** Less than the deadline of a receive: a slow rank is no lost one. */
const slowMs = 500;
/** Of a remote rank, which nobody else would continue; long enough to be noticed, less than it has to come back. */
const freezeMs = 3000;
/** A cluster that takes longer hangs. */
const recoveryDeadlineMs = 120_000;

export class Injector {
  readonly #supervisor: Supervisor;
  readonly #random: RandomSource;
  readonly #signal: AbortSignal;
  readonly #mostSteps: number;
  #stepsLeft = 0;
  #onSteps: () => void = () => undefined;
  #lost: { atMs: number; event: ClusterEvent } | undefined;
  #onEnd: (event: ClusterEvent) => void = () => undefined;

  /** @param maxTokens of each answer */
  constructor(supervisor: Supervisor, random: RandomSource, maxTokens: number, signal: AbortSignal) {
    this.#mostSteps = mostSteps + maxTokens;
    this.#supervisor = supervisor;
    this.#random = random;
    this.#signal = signal;
  }

  /** Call with each event of the supervisor. */
  hear(event: ClusterEvent): void {
    if (event.kind === 'lost') this.#lost ??= { atMs: performance.now(), event };
    else this.#onEnd(event);
  }

  /** Call after each step. */
  step(): void {
    if (--this.#stepsLeft === 0) this.#onSteps();
  }

  /** @throws PeerError when the cluster is not there again in time */
  async inject(drill: DrillName): Promise<Fault> {
    await this.#steps(fewestSteps + Math.floor(this.#random() * (this.#mostSteps - fewestSteps)));
    const { cluster } = this.#supervisor;
    const ranks = cluster.ranks.filter(({ rank }) => drill !== 'memory' || !cluster.isRemote(rank));
    const chosen = ranks[Math.floor(this.#random() * ranks.length)];
    invariant(chosen !== undefined, `drill ${drill}: a cluster without a rank for it`);
    const { rank, pid } = chosen;
    // Anywhere inside a step, not only at its end.
    await after(this.#random() * 20);
    this.#lost = undefined;
    const startedAt = performance.now();
    if (drill === 'slow') {
      await this.#break(drill, rank, pid);
      await this.#steps(fewestSteps);
      return this.#fault(drill, rank, startedAt, undefined);
    }
    const [event] = await Promise.all([this.#end(), this.#break(drill, rank, pid)]);
    if (event.kind !== 'recovered') throw new PeerError(`drill ${drill}, rank ${rank}: ${event.text}`);
    return this.#fault(drill, rank, startedAt, performance.now());
  }

  async #break(drill: DrillName, rank: number, pid: number): Promise<void> {
    const { cluster } = this.#supervisor;
    // Its number of a process belongs to another machine.
    const isRemote = cluster.isRemote(rank);
    const peer = (rank + 1) % cluster.ranks.length;
    switch (drill) {
      case 'memory':
        return cluster.chaos(rank, { action: drill, peer, ms: 0 });
      case 'kill':
        if (isRemote) return cluster.chaos(rank, { action: drill, peer, ms: 0 });
        process.kill(pid, 'SIGKILL');
        return;
      case 'freeze':
        if (isRemote) return cluster.chaos(rank, { action: drill, peer, ms: freezeMs });
        process.kill(pid, 'SIGSTOP');
        return;
      case 'slow':
        return cluster.chaos(rank, { action: 'slow', peer, ms: slowMs });
      case 'garble':
        return cluster.chaos(rank, { action: 'garble', peer, ms: 0 });
      case 'cut':
        await cluster.chaos(rank, { action: 'cut', peer, ms: 0 });
        await cluster.chaos(peer, { action: 'cut', peer: rank, ms: 0 });
    }
  }

  /** Resolves after so many steps. @throws PeerError when they do not come */
  #steps(count: number): Promise<void> {
    this.#stepsLeft = count;
    const passed = new Promise<void>((resolve) => {
      this.#onSteps = resolve;
    });
    return this.#inTime(passed, `${count} steps did not pass`);
  }

  #end(): Promise<ClusterEvent> {
    const ended = new Promise<ClusterEvent>((resolve) => {
      this.#onEnd = resolve;
    });
    return this.#inTime(ended, 'the fault was not noticed, or the cluster did not recover');
  }

  /** @throws PeerError after the deadline; the reason of an interruption at once */
  async #inTime<T>(awaited: Promise<T>, what: string): Promise<T> {
    this.#signal.throwIfAborted();
    let stopWatching = (): void => undefined;
    const ended = new Promise<never>((_, reject) => {
      const late = new PeerError(`drill: ${what} in ${recoveryDeadlineMs} ms`);
      const timer = setTimeout(() => reject(late), recoveryDeadlineMs);
      const interrupt = (): void => reject(asError(this.#signal.reason));
      this.#signal.addEventListener('abort', interrupt);
      stopWatching = () => {
        clearTimeout(timer);
        this.#signal.removeEventListener('abort', interrupt);
      };
    });
    try {
      return await Promise.race([awaited, ended]);
    } finally {
      stopWatching();
    }
  }

  #fault(drill: DrillName, rank: number, startedAt: number, recoveredAt: number | undefined): Fault {
    const lost = this.#lost;
    return {
      drill,
      rank,
      isRemote: this.#supervisor.cluster.isRemote(rank),
      detectedMs: lost === undefined ? undefined : lost.atMs - startedAt,
      recoveredMs: recoveredAt === undefined ? undefined : recoveredAt - startedAt,
      cause: lost?.event.text,
    };
  }
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason));
}
