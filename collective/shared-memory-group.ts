/**
 * ProcessGroup on a shared-memory segment: each rank writes its values into its slot, waits until all have, and sums
 * everyone's itself, in the order of ring.ts. 2-3 us where ZeroMQ takes 80. A wait spins, then yields the core, then
 * lets the event loop turn; before that it is synchronous, so a promise returned here has usually run to its end.
 *
 * Words: a round is one meeting of all ranks and carries at most slotFloats elements per rank; longer operations take
 * several. Slots are double: who writes round k has seen all ranks arrive at round k - 1, and a rank arrives there
 * only after it has read round k - 2, whose slots are now reused. So one meeting per round is enough.
 * Made by shared-memory.ts.
 */
import { availableParallelism } from 'node:os';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { InvariantError, PeerError } from '../config/errors.ts';
import { operations } from './frame.ts';
import type { GroupStats, ProcessGroup } from './group.ts';
import { checkGather, checkRoot, describeCall, OperationRunner } from './operation.ts';
import type { OperationCall } from './operation.ts';
import { chunkStart, sumInChunkOrder } from './ring.ts';

/** Elements per slot, 128 KiB: worldSize 8 takes 2 MiB in all, well below the 64 MiB that containers offer. */
const slotFloats = 32 * 1024;
/** From this many values on (all ranks' together), summing a share each and one more meeting are faster. */
const sharedSumFloats = 16 * 1024;
/** Ranks must not share a cache line (two on some CPUs) of what they write. */
const lineBytes = 128;
const slotBytes = lineBytes + 4 * slotFloats;

/**
 * About 1 us. Longer pays only on a quiet machine and costs where two ranks meet on one core: with two ranks beside
 * other load, p50 of 576 floats was 33 us at 2000, 13 at 400, 7.7 at 100, 6.8 at 20.
 */
const spins = 100;
/** About 150 us of offering the core to others; on a quiet machine a look every 0.3 us. */
const yields = 500;
/** Then the event loop turns at every look. After this long, looks are a twentieth of the wait apart, up to a limit. */
const restlessMs = 20;
const longestRestMs = 10;

/** Memory that all ranks of the group have mapped. */
export interface Segment {
  readonly buffer: ArrayBuffer;
  /** No view of `buffer` may be touched afterwards: the process would crash. */
  readonly unmap: () => void;
  /** Offers the core to another process. */
  readonly schedYield: () => void;
}

export function segmentBytes(worldSize: number): number {
  return worldSize * (lineBytes + 2 * slotBytes);
}

export class SharedMemoryGroup implements ProcessGroup {
  readonly rank: number;
  readonly worldSize: number;

  readonly #timeoutMs: number;
  readonly #runner: OperationRunner;
  readonly #segment: Segment;
  /** The latest round that each rank has arrived at. [worldSize], a line apart; wraps around. */
  readonly #arrived: Int32Array;
  readonly #halves: readonly [Half, Half]; // of even and of odd rounds
  readonly #spins: number;
  #round = 0;
  #closed = false;

  constructor(rank: number, worldSize: number, timeoutMs: number, segment: Segment) {
    this.rank = rank;
    this.worldSize = worldSize;
    this.#timeoutMs = timeoutMs;
    this.#runner = new OperationRunner(rank);
    this.#segment = segment;
    this.#arrived = new Int32Array(segment.buffer, 0, (worldSize * lineBytes) / 4);
    this.#halves = [halfOf(segment.buffer, worldSize, 0), halfOf(segment.buffer, worldSize, 1)];
    // With more ranks than cores the awaited one may be waiting for this very core.
    this.#spins = availableParallelism() < this.worldSize ? 0 : spins;
  }

  get stats(): GroupStats {
    return this.#runner.stats;
  }

  allReduceSum(buffer: Float32Array, label: string): Promise<void> {
    return this.#runner.run('all-reduce', buffer.length, label, (call) => {
      if (this.worldSize === 1) return undefined;
      this.#count(buffer.length, buffer.length * (this.worldSize - 1));
      const windows = Math.ceil(buffer.length / slotFloats);
      if (buffer.length * this.worldSize > sharedSumFloats)
        return this.#rounds(call, 2 * windows, this.#sumShared(buffer));
      return this.#rounds(call, windows, {
        give: (k, slot) => slot.set(windowOf(buffer, k)),
        take: (k, slots) => sumInChunkOrder(slots, windowOf(buffer, k), k * slotFloats, buffer.length),
      });
    });
  }

  allGather(part: Float32Array, lengths: readonly number[], out: Float32Array, label: string): Promise<void> {
    return this.#runner.run('all-gather', out.length, label, (call) => {
      checkGather(this.rank, this.worldSize, part, lengths, out, label);
      let end = 0;
      const parts = lengths.map((length) => out.subarray(end, (end += length)));
      parts[this.rank]?.set(part);
      this.#count(part.length, out.length - part.length);
      return this.#rounds(call, Math.ceil(Math.max(...lengths) / slotFloats), {
        give: (k, slot) => slot.set(windowOf(part, k)),
        take: (k, slots) => {
          for (const [rank, each] of parts.entries()) {
            if (rank !== this.rank) copyTo(slots[rank], windowOf(each, k));
          }
        },
      });
    });
  }

  broadcast(buffer: Float32Array, root: number, label: string): Promise<void> {
    return this.#runner.run('broadcast', buffer.length, label, (call) => {
      checkRoot(this.rank, this.worldSize, root, label);
      const isRoot = this.rank === root;
      this.#count(isRoot ? buffer.length : 0, isRoot ? 0 : buffer.length);
      return this.#rounds(call, Math.ceil(buffer.length / slotFloats), {
        give: (k, slot) => {
          if (isRoot) slot.set(windowOf(buffer, k));
        },
        take: (k, slots) => {
          if (!isRoot) copyTo(slots[root], windowOf(buffer, k));
        },
      });
    });
  }

  barrier(label: string): Promise<void> {
    return this.#runner.run('barrier', 0, label, (call) => this.#rounds(call, 1, { give: nothing, take: nothing }));
  }

  /** An operation that runs meanwhile fails with a PeerError. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#runner.close();
    this.#segment.unmap();
  }

  /** Two rounds per window: each rank sums one share of it, then all copy everyone's. Less work, one more meeting. */
  #sumShared(buffer: Float32Array): Round {
    const { worldSize } = this;
    const shareOf = (window: Float32Array, rank: number): [number, number] => [
      chunkStart(window.length, worldSize, rank),
      chunkStart(window.length, worldSize, rank + 1),
    ];
    return {
      give: (k, slot) => {
        const window = windowOf(buffer, k >> 1);
        slot.set(k % 2 === 0 ? window : window.subarray(...shareOf(window, this.rank)));
      },
      take: (k, slots) => {
        const window = windowOf(buffer, k >> 1);
        if (k % 2 === 0) {
          const [start, end] = shareOf(window, this.rank);
          const parts = slots.map((slot) => slot.subarray(start, end));
          sumInChunkOrder(parts, window.subarray(start, end), (k >> 1) * slotFloats + start, buffer.length);
        } else {
          for (const [rank, slot] of slots.entries()) copyTo(slot, window.subarray(...shareOf(window, rank)));
        }
      },
    };
  }

  /** Synchronous as long as the others are not late; returns a promise from the first long wait on. */
  #rounds(call: OperationCall, count: number, work: Round, done = 0): Promise<void> | undefined {
    for (let k = done; k < count; k++) {
      const half = this.#halves[this.#round % 2 === 0 ? 0 : 1];
      this.#round++;
      writeHeader(half.headers[this.rank], call);
      const slot = half.slots[this.rank];
      if (slot) work.give(k, slot);
      // Publishes the plain writes above: whoever loads this value sees them.
      Atomics.store(this.#arrived, (this.rank * lineBytes) / 4, this.#round | 0);
      const late = this.#waitShortly();
      if (late !== null) return this.#waitLong(call, late).then(() => this.#finishRound(call, count, work, half, k));
      this.#checkHeaders(call, half);
      work.take(k, half.slots);
    }
    return undefined;
  }

  #finishRound(call: OperationCall, count: number, work: Round, half: Half, k: number): Promise<void> | undefined {
    this.#checkHeaders(call, half);
    work.take(k, half.slots);
    return this.#rounds(call, count, work, k + 1);
  }

  /** @returns null when all have arrived, otherwise the first rank that has not */
  #waitShortly(): number | null {
    let late = this.#firstLate(0);
    for (let i = 0; i < this.#spins && late !== null; i++) late = this.#firstLate(late);
    for (let i = 0; i < yields && late !== null; i++) {
      this.#segment.schedYield();
      late = this.#firstLate(late);
    }
    return late;
  }

  /** Lets the event loop turn, so that this process can notice that its coordinator or a peer is gone. */
  async #waitLong(call: OperationCall, firstLate: number): Promise<void> {
    const start = performance.now();
    let late: number | null = firstLate;
    while ((late = this.#firstLate(late)) !== null) {
      const waitedMs = performance.now() - start;
      const what = describeCall(call);
      if (this.#closed) throw new PeerError(`rank ${this.rank}: ${what} was given up: the group was closed`);
      if (waitedMs > this.#timeoutMs) {
        throw new PeerError(`rank ${this.rank}: nothing from rank ${late} for ${what} in ${this.#timeoutMs} ms`);
      }
      if (waitedMs < restlessMs) {
        await setImmediate();
        this.#segment.schedYield();
      } else {
        await setTimeout(Math.min(waitedMs / 20, longestRestMs));
      }
    }
  }

  #firstLate(from: number): number | null {
    for (let rank = from; rank < this.worldSize; rank++) {
      // A difference instead of a comparison: round numbers wrap around.
      const behind = (this.#round - Atomics.load(this.#arrived, (rank * lineBytes) / 4)) | 0;
      if (behind > 0) return rank;
    }
    return null;
  }

  #checkHeaders(call: OperationCall, half: Half): void {
    const own = half.headers[this.rank];
    for (let rank = 0; rank < half.headers.length; rank++) {
      const theirs = half.headers[rank];
      if (theirs === undefined || own === undefined) continue;
      if (theirs[0] === own[0] && theirs[1] === own[1] && theirs[2] === own[2]) continue;
      throw new InvariantError(
        `rank ${this.rank} is in ${describeCall(call)}, but rank ${rank} is in ` +
          `${operations[theirs[0] ?? 0]} #${theirs[1]} (${4 * (theirs[2] ?? 0)} B); ` +
          'all ranks must call the same collectives in the same order',
      );
    }
  }

  #count(sent: number, received: number): void {
    if (this.worldSize === 1) return;
    this.stats.bytesSent += 4 * sent;
    this.stats.bytesReceived += 4 * received;
  }
}

/** What one operation writes and reads in its k-th round. */
interface Round {
  readonly give: (k: number, slot: Float32Array) => void;
  readonly take: (k: number, slots: readonly Float32Array[]) => void; // [worldSize]
}

function nothing(): void {}

/** @param header [operation, sequence, total] */
function writeHeader(header: Int32Array | undefined, { operation, sequence, total }: OperationCall): void {
  if (header === undefined) return;
  header[0] = operations.indexOf(operation);
  header[1] = sequence;
  header[2] = total;
}

/** The k-th stretch of slotFloats elements; the last may be shorter, and beyond the end it is empty. */
function windowOf(buffer: Float32Array, k: number): Float32Array {
  // Most buffers are one window, and making a view of them takes as long as summing them.
  if (k === 0 && buffer.length <= slotFloats) return buffer;
  return buffer.subarray(k * slotFloats, (k + 1) * slotFloats);
}

function copyTo(slot: Float32Array | undefined, window: Float32Array): void {
  if (slot) window.set(slot.subarray(0, window.length));
}

/** What all ranks write in the even, or in the odd, rounds. */
interface Half {
  readonly headers: readonly Int32Array[]; // [worldSize] of [operation, sequence, total]
  readonly slots: readonly Float32Array[]; // [worldSize][slotFloats]
}

function halfOf(buffer: ArrayBuffer, worldSize: number, half: 0 | 1): Half {
  const starts = Array.from(
    { length: worldSize },
    (_, rank) => worldSize * lineBytes + (half * worldSize + rank) * slotBytes,
  );
  return {
    headers: starts.map((start) => new Int32Array(buffer, start, 3)),
    slots: starts.map((start) => new Float32Array(buffer, start + lineBytes, slotFloats)),
  };
}
