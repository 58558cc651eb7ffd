/**
 * ProcessGroup between callers in one process, for tests and for worldSize 1. Sums in the order of ring.ts, so that
 * its results can be compared bit by bit with those of real processes. Counts as bytes what it copies between ranks.
 */
import { InvariantError, PeerError } from '../config/errors.ts';
import type { GroupStats, ProcessGroup } from './group.ts';
import { checkGather, checkRoot, describeCall, OperationRunner } from './operation.ts';
import type { OperationCall } from './operation.ts';
import { sumInChunkOrder } from './ring.ts';

/** @returns one group per rank; each is to be driven by its own chain of awaits. */
export function createLocalGroups(worldSize: number, timeoutMs = 10_000): ProcessGroup[] {
  const meeting = new Meeting(worldSize, timeoutMs);
  return Array.from({ length: worldSize }, (_, rank) => new LocalGroup(rank, worldSize, meeting));
}

class LocalGroup implements ProcessGroup {
  readonly rank: number;
  readonly worldSize: number;
  readonly #meeting: Meeting;
  readonly #runner: OperationRunner;

  constructor(rank: number, worldSize: number, meeting: Meeting) {
    this.rank = rank;
    this.worldSize = worldSize;
    this.#meeting = meeting;
    this.#runner = new OperationRunner(rank);
  }

  get stats(): GroupStats {
    return this.#runner.stats;
  }

  allReduceSum(buffer: Float32Array, label: string): Promise<void> {
    return this.#runner.run('all-reduce', buffer.length, label, async (call) => {
      const parts = await this.#meeting.meet(this.rank, call, buffer);
      this.#count(buffer.length * (this.worldSize - 1), buffer.length * (this.worldSize - 1));
      sumInChunkOrder(parts, buffer, 0, buffer.length);
    });
  }

  allGather(part: Float32Array, lengths: readonly number[], out: Float32Array, label: string): Promise<void> {
    return this.#runner.run('all-gather', out.length, label, async (call) => {
      checkGather(this.rank, this.worldSize, part, lengths, out, label);
      const parts = await this.#meeting.meet(this.rank, call, part);
      this.#count(part.length * (this.worldSize - 1), out.length - part.length);
      let end = 0;
      for (const each of parts) {
        out.set(each, end);
        end += each.length;
      }
    });
  }

  broadcast(buffer: Float32Array, root: number, label: string): Promise<void> {
    return this.#runner.run('broadcast', buffer.length, label, async (call) => {
      checkRoot(this.rank, this.worldSize, root, label);
      const parts = await this.#meeting.meet(this.rank, call, buffer);
      if (this.rank === root) this.#count(buffer.length * (this.worldSize - 1), 0);
      else this.#count(0, buffer.length);
      buffer.set(parts[root] ?? buffer);
    });
  }

  barrier(label: string): Promise<void> {
    return this.#runner.run('barrier', 0, label, async (call) => {
      await this.#meeting.meet(this.rank, call, new Float32Array(0));
    });
  }

  /** An operation that runs meanwhile fails with a PeerError. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#meeting.leave(this.rank);
    await this.#runner.close();
  }

  #count(sent: number, received: number): void {
    this.stats.bytesSent += 4 * sent;
    this.stats.bytesReceived += 4 * received;
  }
}

interface Arrival {
  readonly call: OperationCall;
  readonly data: Float32Array; // a copy: the caller's buffer may be overwritten before all have read it
  readonly resolve: (parts: Float32Array[]) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

/** Where the ranks of one operation wait until all have come. */
class Meeting {
  readonly #worldSize: number;
  readonly #timeoutMs: number;
  readonly #arrivals = new Map<number, Arrival>();

  constructor(worldSize: number, timeoutMs: number) {
    this.#worldSize = worldSize;
    this.#timeoutMs = timeoutMs;
  }

  /** @returns what each rank brought. [worldSize] */
  meet(rank: number, call: OperationCall, data: Float32Array): Promise<Float32Array[]> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#late(rank), this.#timeoutMs);
      this.#arrivals.set(rank, { call, data: data.slice(), resolve, reject, timer });
      const mismatch = this.#mismatch(rank, call);
      if (mismatch) return this.#finish((arrival) => arrival.reject(mismatch));
      if (this.#arrivals.size < this.#worldSize) return;
      const parts = Array.from(this.#arrivals.entries())
        .sort(([a], [b]) => a - b)
        .map(([, arrival]) => arrival.data);
      this.#finish((arrival) => arrival.resolve(parts));
    });
  }

  leave(rank: number): void {
    const arrival = this.#arrivals.get(rank);
    if (!arrival) return;
    this.#remove(rank, arrival);
    arrival.reject(new PeerError(`rank ${rank}: ${describeCall(arrival.call)} was given up: the group was closed`));
  }

  #mismatch(rank: number, call: OperationCall): InvariantError | null {
    for (const [other, { call: theirs }] of this.#arrivals) {
      const same =
        theirs.operation === call.operation && theirs.sequence === call.sequence && theirs.total === call.total;
      if (same) continue;
      return new InvariantError(
        `rank ${rank} is in ${describeCall(call)}, but rank ${other} is in ${describeCall(theirs)}; ` +
          'all ranks must call the same collectives in the same order',
      );
    }
    return null;
  }

  #late(rank: number): void {
    const arrival = this.#arrivals.get(rank);
    const missing = Array.from({ length: this.#worldSize }, (_, other) => other).find((r) => !this.#arrivals.has(r));
    if (!arrival || missing === undefined) return;
    this.#remove(rank, arrival);
    const what = describeCall(arrival.call);
    arrival.reject(new PeerError(`rank ${rank}: nothing from rank ${missing} for ${what} in ${this.#timeoutMs} ms`));
  }

  #finish(settle: (arrival: Arrival) => void): void {
    for (const [rank, arrival] of this.#arrivals) {
      this.#remove(rank, arrival);
      settle(arrival);
    }
  }

  #remove(rank: number, arrival: Arrival): void {
    clearTimeout(arrival.timer);
    this.#arrivals.delete(rank);
  }
}
