/**
 * ProcessGroup of ranks on one host, by meetings in shared memory: 2-3 us where ZeroMQ takes 80. Every rank sums
 * everyone's values itself, in the order of ring.ts. Made by shared-memory.ts. Read next: shared-rounds.ts.
 */
import type { GroupStats, ProcessGroup } from './group.ts';
import { checkGather, checkRoot, OperationRunner, partsOf } from './operation.ts';
import { SharedRounds, type Segment } from './shared-rounds.ts';
import { copyWork, gatherWork, meetingWork, sumWork } from './shared-work.ts';

export class SharedMemoryGroup implements ProcessGroup {
  readonly rank: number;
  readonly worldSize: number;

  readonly #runner: OperationRunner;
  readonly #rounds: SharedRounds;
  #closed = false;

  constructor(rank: number, worldSize: number, timeoutMs: number, segment: Segment) {
    this.rank = rank;
    this.worldSize = worldSize;
    this.#runner = new OperationRunner(rank);
    const ranks = Array.from({ length: worldSize }, (_, place) => place);
    const nameOf = (of: number): string => `rank ${of}`;
    this.#rounds = new SharedRounds(segment, { place: rank, ranks, timeoutMs, nameOf }, this.#runner.stats);
  }

  get stats(): GroupStats {
    return this.#runner.stats;
  }

  allReduceSum(buffer: Float32Array, label: string): Promise<void> {
    return this.#runner.run('all-reduce', buffer.length, label, (call) => {
      if (this.worldSize === 1) return undefined;
      return this.#rounds.run(call, sumWork(this.rank, this.worldSize, buffer));
    });
  }

  allGather(part: Float32Array, lengths: readonly number[], out: Float32Array, label: string): Promise<void> {
    return this.#runner.run('all-gather', out.length, label, (call) => {
      checkGather(this.rank, this.worldSize, part, lengths, out, label);
      const parts = partsOf(out, lengths);
      parts[this.rank]?.set(part);
      return this.#rounds.run(call, gatherWork(this.rank, parts));
    });
  }

  broadcast(buffer: Float32Array, root: number, label: string): Promise<void> {
    return this.#runner.run('broadcast', buffer.length, label, (call) => {
      checkRoot(this.rank, this.worldSize, root, label);
      return this.#rounds.run(call, copyWork(this.rank, root, buffer));
    });
  }

  barrier(label: string): Promise<void> {
    return this.#runner.run('barrier', 0, label, (call) => this.#rounds.run(call, meetingWork));
  }

  /** An operation that runs meanwhile fails with a PeerError. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#rounds.close();
    await this.#runner.close();
    this.#rounds.unmap();
  }
}
