/**
 * Meetings of ranks that have mapped one segment of shared memory: in a round each writes its values into its slot, waits
 * until all have, and reads everyone's. A wait spins, then yields the core, then lets the event loop turn; before that it
 * is synchronous, so a promise returned here has usually run to its end.
 *
 * Words: members are the ranks that meet, a place is the number of one among them. A round carries at most slotFloats
 * elements per member; longer operations take several. Slots are double: who writes round k has seen all members arrive
 * at round k - 1, and a member arrives there only after it has read round k - 2, whose slots are now reused. So one
 * meeting per round is enough. Read next: shared-work.ts (what is written and read), shared-memory-group.ts.
 */
import { availableParallelism } from 'node:os';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { InvariantError, PeerError } from '../config/errors.ts';
import { operations } from './frame.ts';
import type { GroupStats } from './group.ts';
import { describeCall } from './operation.ts';
import type { OperationCall } from './operation.ts';

/** Elements per slot, 128 KiB: 8 members take 2 MiB in all, well below the 64 MiB that containers offer. */
export const slotFloats = 32 * 1024;
/** Members must not share a cache line (two on some CPUs) of what they write. */
const lineBytes = 128;
const slotBytes = lineBytes + 4 * slotFloats;
/** Why a member gave up. */
const noticeBytes = 1024;

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

/** Memory that all members have mapped. */
export interface Segment {
  readonly buffer: ArrayBuffer;
  /** No view of `buffer` may be touched afterwards: the process would crash. */
  readonly unmap: () => void;
  /** Offers the core to another process. */
  readonly schedYield: () => void;
}

export function segmentBytes(members: number): number {
  return members * (lineBytes + noticeBytes + 2 * slotBytes);
}

/** What one operation writes and reads in its rounds. */
export interface Work {
  readonly rounds: number;
  /** Elements handed to and taken from other members. */
  readonly sent: number;
  readonly received: number;
  readonly give: (k: number, slot: Float32Array) => void;
  readonly take: (k: number, slots: readonly Float32Array[]) => void; // [members]
}

export interface RoundSettings {
  readonly place: number;
  /** Rank of each member. [members] */
  readonly ranks: readonly number[];
  /** Deadline of every wait for the other members. */
  readonly timeoutMs: number;
  /** As messages call a rank. */
  readonly nameOf: (rank: number) => string;
}

export class SharedRounds {
  readonly place: number;
  readonly members: number;

  readonly #settings: RoundSettings;
  readonly #rank: number;
  readonly #stats: GroupStats;
  readonly #segment: Segment;
  /** [members], a line apart: the latest round that the member has arrived at, which wraps around; bytes of its notice. */
  readonly #lines: Int32Array;
  readonly #notices: readonly Uint8Array[]; // [members][noticeBytes]
  readonly #halves: readonly [Half, Half]; // of even and of odd rounds
  readonly #spins: number;
  #round = 0;
  #closed = false;

  constructor(segment: Segment, settings: RoundSettings, stats: GroupStats) {
    const { place, ranks } = settings;
    const members = ranks.length;
    this.place = place;
    this.members = members;
    this.#settings = settings;
    this.#rank = ranks[place] ?? 0;
    this.#stats = stats;
    this.#segment = segment;
    this.#lines = new Int32Array(segment.buffer, 0, (members * lineBytes) / 4);
    this.#notices = ranks.map(
      (_, k) => new Uint8Array(segment.buffer, members * lineBytes + k * noticeBytes, noticeBytes),
    );
    this.#halves = [halfOf(segment.buffer, members, 0), halfOf(segment.buffer, members, 1)];
    // With more members than cores the awaited one may be waiting for this very core.
    this.#spins = availableParallelism() < members ? 0 : spins;
  }

  /**
   * @param graceMs longer than the deadline, for what members other than this one may wait for first
   * @throws PeerError when a member is late or has given up; InvariantError when one is in another operation
   */
  run(call: OperationCall, work: Work, graceMs = 0): Promise<void> | undefined {
    if (this.members > 1) {
      this.#stats.bytesSent += 4 * work.sent;
      this.#stats.bytesReceived += 4 * work.received;
    }
    return this.#rounds(call, work, graceMs, 0);
  }

  /** Tells the members, who would wait for this one in vain. */
  giveUp(reason: string): void {
    const notice = this.#notices[this.place];
    if (notice === undefined || this.#closed) return;
    const { written } = new TextEncoder().encodeInto(reason, notice);
    Atomics.store(this.#lines, this.#lineOf(this.place) + 1, written);
  }

  /** What runs fails with a PeerError. */
  close(): void {
    this.#closed = true;
  }

  /** Only after close, when nothing runs. */
  unmap(): void {
    this.#segment.unmap();
  }

  #rounds(call: OperationCall, work: Work, graceMs: number, first: number): Promise<void> | undefined {
    for (let k = first; k < work.rounds; k++) {
      const half = this.#halves[this.#round % 2 === 0 ? 0 : 1];
      this.#round++;
      writeHeader(half.headers[this.place], call);
      const slot = half.slots[this.place];
      if (slot) work.give(k, slot);
      // Publishes the plain writes above: whoever loads this value sees them.
      Atomics.store(this.#lines, this.#lineOf(this.place), this.#round | 0);
      const late = this.#waitShortly();
      if (late !== null) {
        return this.#waitLong(call, late, graceMs).then(() => {
          this.#finishRound(call, work, half, k);
          return this.#rounds(call, work, graceMs, k + 1);
        });
      }
      this.#finishRound(call, work, half, k);
    }
    return undefined;
  }

  #finishRound(call: OperationCall, work: Work, half: Half, k: number): void {
    this.#checkHeaders(call, half);
    work.take(k, half.slots);
  }

  /** @returns null when all have arrived, otherwise the place of the first that has not */
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
  async #waitLong(call: OperationCall, firstLate: number, graceMs: number): Promise<void> {
    const { timeoutMs } = this.#settings;
    const start = performance.now();
    let late: number | null = firstLate;
    while ((late = this.#firstLate(late)) !== null) {
      const waitedMs = performance.now() - start;
      const what = describeCall(call);
      if (this.#closed) throw new PeerError(`rank ${this.#rank}: ${what} was given up: the group was closed`);
      this.#checkNotices(what);
      if (waitedMs > timeoutMs + graceMs) {
        throw new PeerError(`rank ${this.#rank}: nothing from ${this.#nameOf(late)} for ${what} in ${timeoutMs} ms`);
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
    for (let place = from; place < this.members; place++) {
      // A difference instead of a comparison: round numbers wrap around.
      const behind = (this.#round - Atomics.load(this.#lines, this.#lineOf(place))) | 0;
      if (behind > 0) return place;
    }
    return null;
  }

  #checkNotices(what: string): void {
    for (const [place, notice] of this.#notices.entries()) {
      const length = place === this.place ? 0 : Atomics.load(this.#lines, this.#lineOf(place) + 1);
      if (length === 0) continue;
      const reason = new TextDecoder().decode(notice.subarray(0, length));
      throw new PeerError(`rank ${this.#rank}: ${what} was given up, as ${this.#nameOf(place)} did: ${reason}`);
    }
  }

  #checkHeaders(call: OperationCall, half: Half): void {
    const own = half.headers[this.place];
    for (let place = 0; place < half.headers.length; place++) {
      const theirs = half.headers[place];
      if (theirs === undefined || own === undefined) continue;
      if (theirs[0] === own[0] && theirs[1] === own[1] && theirs[2] === own[2]) continue;
      throw new InvariantError(
        `rank ${this.#rank} is in ${describeCall(call)}, but ${this.#nameOf(place)} is in ` +
          `${operations[theirs[0] ?? 0]} #${theirs[1]} (${4 * (theirs[2] ?? 0)} B); ` +
          'all ranks must call the same collectives in the same order',
      );
    }
  }

  #lineOf(place: number): number {
    return (place * lineBytes) / 4;
  }

  #nameOf(place: number): string {
    return this.#settings.nameOf(this.#settings.ranks[place] ?? 0);
  }
}

/** @param header [operation, sequence, total] */
function writeHeader(header: Int32Array | undefined, { operation, sequence, total }: OperationCall): void {
  if (header === undefined) return;
  header[0] = operations.indexOf(operation);
  header[1] = sequence;
  header[2] = total;
}

/** What all members write in the even, or in the odd, rounds. */
interface Half {
  readonly headers: readonly Int32Array[]; // [members] of [operation, sequence, total]
  readonly slots: readonly Float32Array[]; // [members][slotFloats]
}

function halfOf(buffer: ArrayBuffer, members: number, half: 0 | 1): Half {
  const starts = Array.from(
    { length: members },
    (_, place) => members * (lineBytes + noticeBytes) + (half * members + place) * slotBytes,
  );
  return {
    headers: starts.map((start) => new Int32Array(buffer, start, 3)),
    slots: starts.map((start) => new Float32Array(buffer, start + lineBytes, slotFloats)),
  };
}
