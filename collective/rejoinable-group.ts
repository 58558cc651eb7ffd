/**
 * The process group that a rank's programs hold for the life of the rank. What carries it is replaced when another rank
 * was lost: leave() makes an operation that runs fail, enter() puts the next group in. Read next: create-group.ts.
 */
import { InvariantError, PeerError } from '../config/errors.ts';
import type { JoinedGroup } from './create-group.ts';
import type { GroupStats, ProcessGroup, RoundTrip } from './group.ts';
import type { Payload } from './payload.ts';

export class RejoinableGroup implements ProcessGroup {
  readonly rank: number;
  readonly worldSize: number;
  #joined: JoinedGroup | undefined;
  #leaving: Promise<void> = Promise.resolve();

  constructor(rank: number, worldSize: number) {
    this.rank = rank;
    this.worldSize = worldSize;
  }

  /** Of the group that carries it now. */
  get stats(): GroupStats {
    return this.#group('stats').stats;
  }

  allReduceSum(buffer: Float32Array, label: string, payload?: Payload): Promise<void> {
    return this.#group(label).allReduceSum(buffer, label, payload);
  }

  allGather(part: Float32Array, lengths: readonly number[], out: Float32Array, label: string): Promise<void> {
    return this.#group(label).allGather(part, lengths, out, label);
  }

  broadcast(buffer: Float32Array, root: number, label: string): Promise<void> {
    return this.#group(label).broadcast(buffer, root, label);
  }

  barrier(label: string): Promise<void> {
    return this.#group(label).barrier(label);
  }

  get roundTrip(): RoundTrip | undefined {
    return this.#group('round trip').roundTrip;
  }

  enter(joined: JoinedGroup): void {
    if (this.#joined !== undefined) throw new InvariantError(`rank ${this.rank}: a second group while in one`);
    this.#joined = joined;
  }

  /** An operation that runs meanwhile fails with a PeerError; so do later ones until enter(). Harmless when called twice. */
  leave(): Promise<void> {
    const joined = this.#joined;
    this.#joined = undefined;
    if (joined !== undefined) this.#leaving = disposed(joined);
    return this.#leaving;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.leave();
  }

  #group(label: string): ProcessGroup {
    if (this.#joined !== undefined) return this.#joined.group;
    throw new PeerError(`rank ${this.rank}: ${label} was given up: this rank has left its group`);
  }
}

async function disposed(joined: AsyncDisposable): Promise<void> {
  await joined[Symbol.asyncDispose]();
}
