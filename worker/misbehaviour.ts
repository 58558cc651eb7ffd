/**
 * Misbehaviour that a fault drill asks of a rank: late requests, damaged and lost frames, a heap that fills, a sudden
 * end. Exists only where the coordinator's setup allowed it; `tpla faults` alone does.
 * Read next: ../collective/messages.ts (chaos).
 */
import { setTimeout as after } from 'node:timers/promises';
import type { ToWorker } from '../collective/greetings.ts';
import type { Chaos } from '../collective/messages.ts';

export class Misbehaviour {
  #lateMs = 0;
  #garbleTo: number | undefined;
  #cutTo = new Set<number>();

  obey({ action, peer, ms }: Chaos): void {
    switch (action) {
      case 'slow':
        this.#lateMs = ms;
        return;
      case 'garble':
        this.#garbleTo = peer;
        return;
      case 'cut':
        this.#cutTo.add(peer);
        return;
      case 'memory':
        return fillHeap();
      case 'kill':
        process.kill(process.pid, 'SIGKILL');
        return;
      case 'freeze':
        // Who is stopped cannot continue itself.
        process.send?.({ kind: 'freeze', ms } satisfies ToWorker);
        return;
    }
  }

  /** Before a request. */
  async hesitate(): Promise<void> {
    const ms = this.#lateMs;
    this.#lateMs = 0;
    if (ms > 0) await after(ms);
  }

  /** @returns what is sent instead of the frame; null: nothing */
  readonly tamper = (frame: Buffer, to: number): Buffer | null => {
    if (this.#cutTo.has(to)) return null;
    if (this.#garbleTo !== to) return frame;
    this.#garbleTo = undefined;
    const damaged = Buffer.from(frame);
    const last = damaged.length - 1;
    damaged[last] = (damaged[last] ?? 0) ^ 1;
    return damaged;
  };

  /** Traffic flows again. */
  nextEpoch(): void {
    this.#garbleTo = undefined;
    this.#cutTo.clear();
  }
}

/** Values of one array: 8 MB, which V8 keeps on its heap, whose limit ends the process. */
const arrayLength = 1 << 20;

function fillHeap(): never {
  const kept: number[][] = [];
  for (;;) kept.push(Array.from({ length: arrayLength }, (_, i) => i + 0.5));
}
