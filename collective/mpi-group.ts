/**
 * ProcessGroup on MPI. Sums in the order of ring.ts, as all groups do: between two ranks MPI's own all-reduce gives those
 * bits, since a + b is b + a; between more, every rank is sent its chunk of all buffers, adds it in order, and the sums are
 * gathered. Calls block this process until all ranks have come: MPI has no deadlines and no recovery, mpirun ends the job
 * when a rank dies.
 */
import { ConfigError } from '../config/errors.ts';
import type { GroupStats, ProcessGroup } from './group.ts';
import type { Mpi } from './mpi.ts';
import { checkGather, checkRoot, OperationRunner } from './operation.ts';
import { chunkStart, sumInChunkOrder } from './ring.ts';

export class MpiGroup implements ProcessGroup {
  readonly rank: number;
  readonly worldSize: number;
  readonly #mpi: Mpi;
  readonly #runner: OperationRunner;
  #scratch = new Float32Array(0);

  /** @throws ConfigError when mpirun started other ranks than the cluster has */
  constructor(mpi: Mpi, rank: number, worldSize: number) {
    if (mpi.rank !== rank || mpi.size !== worldSize)
      throw new ConfigError(
        `rank ${rank}: transport mpi: this process is rank ${mpi.rank} of ${mpi.size} in MPI, and rank ${rank} of ${worldSize} in the cluster; start the ranks with mpirun -n ${worldSize}`,
      );
    this.rank = rank;
    this.worldSize = worldSize;
    this.#mpi = mpi;
    this.#runner = new OperationRunner(rank);
  }

  get stats(): GroupStats {
    return this.#runner.stats;
  }

  allReduceSum(buffer: Float32Array, label: string): Promise<void> {
    return this.#runner.run('all-reduce', buffer.length, label, () => {
      if (this.worldSize === 1 || buffer.length === 0) return undefined;
      if (this.worldSize === 2) this.#sumOfTwo(buffer);
      else this.#sumInOrder(buffer);
      return undefined;
    });
  }

  allGather(part: Float32Array, lengths: readonly number[], out: Float32Array, label: string): Promise<void> {
    return this.#runner.run('all-gather', out.length, label, () => {
      checkGather(this.rank, this.worldSize, part, lengths, out, label);
      const counts = Int32Array.from(lengths);
      this.#mpi.allGather(part, out, counts, startsOf(counts));
      this.#count(part.length * (this.worldSize - 1), out.length - part.length);
      return undefined;
    });
  }

  broadcast(buffer: Float32Array, root: number, label: string): Promise<void> {
    return this.#runner.run('broadcast', buffer.length, label, () => {
      checkRoot(this.rank, this.worldSize, root, label);
      this.#mpi.broadcast(buffer, root);
      const isRoot = this.rank === root;
      this.#count(isRoot ? buffer.length * (this.worldSize - 1) : 0, isRoot ? 0 : buffer.length);
      return undefined;
    });
  }

  barrier(label: string): Promise<void> {
    return this.#runner.run('barrier', 0, label, () => {
      this.#mpi.barrier();
      return undefined;
    });
  }

  /** MPI itself stays initialised until the process ends: it cannot be initialised twice. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#runner.close();
  }

  #sumOfTwo(buffer: Float32Array): void {
    const sum = this.#scratchOf(buffer.length);
    this.#mpi.allReduce(buffer, sum);
    buffer.set(sum);
    this.#count(buffer.length, buffer.length);
  }

  #sumInOrder(buffer: Float32Array): void {
    const { rank, worldSize } = this;
    const total = buffer.length;
    const starts = Int32Array.from({ length: worldSize }, (_, chunk) => chunkStart(total, worldSize, chunk));
    const counts = starts.map((start, chunk) => (starts[chunk + 1] ?? total) - start);
    const own = counts[rank] ?? 0;
    const ownCounts = new Int32Array(worldSize).fill(own);
    const received = this.#scratchOf(worldSize * own); // [worldSize, own]: this rank's chunk of every buffer
    this.#mpi.allToAll(buffer, counts, starts, received, ownCounts, startsOf(ownCounts));
    const chunk = new Float32Array(own);
    const parts = Array.from({ length: worldSize }, (_, from) => received.subarray(from * own, (from + 1) * own));
    sumInChunkOrder(parts, chunk, starts[rank] ?? 0, total);
    this.#mpi.allGather(chunk, buffer, counts, starts);
    const others = total - own + own * (worldSize - 1);
    this.#count(others, others);
  }

  #count(sent: number, received: number): void {
    this.stats.bytesSent += 4 * sent;
    this.stats.bytesReceived += 4 * received;
  }

  #scratchOf(length: number): Float32Array {
    if (this.#scratch.length < length) this.#scratch = new Float32Array(length);
    return this.#scratch.subarray(0, length);
  }
}

/** Where each part begins when they lie side by side. */
function startsOf(counts: Int32Array): Int32Array {
  let start = 0;
  return counts.map((count) => (start += count) - count);
}
