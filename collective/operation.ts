/**
 * What every group does around a collective, whatever carries it: number it, count it, time it, refuse a second one at
 * the same time, and refuse all further ones after a failure (ranks no longer agree on what comes next).
 * Read next: ring.ts.
 */
import { InvariantError, messageOf, PeerError } from '../config/errors.ts';
import { newGroupStats } from './group.ts';
import type { GroupStats } from './group.ts';
import type { Operation } from './frame.ts';

/** One collective as this rank calls it. */
export interface OperationCall {
  readonly operation: Operation;
  /** Counts this group's operations from 1; 0 is the handshake. */
  readonly sequence: number;
  /** Elements of the whole operation, the same on all ranks. */
  readonly total: number;
  readonly label: string;
}

/** `all-reduce #518 (layer 12, attention, 9216 B)` */
export function describeCall(call: OperationCall): string {
  return `${call.operation} #${call.sequence} (${call.label}, ${4 * call.total} B)`;
}

export class OperationRunner {
  readonly stats: GroupStats = newGroupStats();
  readonly #rank: number;
  #sequence = 0;
  #current: OperationCall | null = null;
  #failure: unknown = null;
  #closed = false;
  #ended: Promise<void> = Promise.resolve();

  constructor(rank: number) {
    this.#rank = rank;
  }

  /**
   * Runs `work` as the next operation.
   * @throws InvariantError while another runs or after close; PeerError after an earlier failure; what `work` throws
   */
  async run(
    operation: Operation,
    total: number,
    label: string,
    work: (call: OperationCall) => Promise<void> | undefined,
  ): Promise<void> {
    this.#check(operation, label);
    const call = { operation, sequence: operation === 'hello' ? 0 : ++this.#sequence, total, label };
    this.#current = call;
    const start = performance.now();
    try {
      // Shared memory finishes most operations without a promise; an await would cost more than the operation.
      const pending = work(call);
      if (pending) {
        this.#ended = pending.then(ignore, ignore);
        await pending;
      }
      if (operation !== 'hello') this.stats.operations++;
    } catch (error) {
      this.#failure = error;
      throw error;
    } finally {
      this.#current = null;
      this.stats.waitMs += performance.now() - start;
    }
  }

  /** No further operation starts. Resolves when the running one, which the group must make fail, has ended. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#ended;
  }

  #check(operation: Operation, label: string): void {
    const next = `rank ${this.#rank}: ${operation} (${label})`;
    if (this.#closed) throw new InvariantError(`${next} after the group was closed`);
    if (this.#current) throw new InvariantError(`${next} while ${describeCall(this.#current)} runs; await it first`);
    if (this.#failure === null) return;
    throw new PeerError(`${next} after a failure: ${messageOf(this.#failure)}`, { cause: this.#failure });
  }
}

/** @throws InvariantError when the arguments of an all-gather do not fit together */
export function checkGather(
  rank: number,
  worldSize: number,
  part: Float32Array,
  lengths: readonly number[], // [worldSize]
  out: Float32Array,
  label: string,
): void {
  const total = lengths.reduce((sum, length) => sum + length, 0);
  if (lengths.length === worldSize && part.length === lengths[rank] && out.length === total) return;
  throw new InvariantError(
    `rank ${rank}: all-gather (${label}): part of ${part.length}, lengths [${lengths.join(', ')}], out of ${out.length}; ` +
      `expected ${worldSize} lengths, the part's being ${lengths[rank]}, and their sum ${total}`,
  );
}

/** Where the part of each rank goes in the result of an all-gather: views of `out`. [worldSize] */
export function partsOf(out: Float32Array, lengths: readonly number[]): Float32Array[] {
  let end = 0;
  return lengths.map((length) => out.subarray(end, (end += length)));
}

/** @throws InvariantError */
export function checkRoot(rank: number, worldSize: number, root: number, label: string): void {
  if (Number.isInteger(root) && root >= 0 && root < worldSize) return;
  throw new InvariantError(`rank ${rank}: broadcast (${label}): root ${root}, expected 0 to ${worldSize - 1}`);
}

/** For the promise that only says when an operation has ended; its failure goes to the operation's caller. */
function ignore(): void {}
