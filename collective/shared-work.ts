/**
 * What members write and read in the rounds of one operation. Sums are those of ring.ts over the members. A window is
 * what one round carries of a longer buffer. Read next: shared-rounds.ts.
 */
import { chunkStart, sumInChunkOrder } from './ring.ts';
import { slotFloats, type Work } from './shared-rounds.ts';

/** From this many values on (all members' together), summing a share each and one more meeting are faster. */
const sharedSumFloats = 16 * 1024;

export const meetingWork: Work = { rounds: 1, sent: 0, received: 0, give: nothing, take: nothing };

/** Replaces `buffer` by the sum of all members' buffers. */
export function sumWork(place: number, members: number, buffer: Float32Array): Work {
  const windows = Math.ceil(buffer.length / slotFloats);
  const counts = { sent: buffer.length, received: buffer.length * (members - 1) };
  if (buffer.length * members > sharedSumFloats)
    return { rounds: 2 * windows, ...counts, ...sharedSum(place, members, buffer) };
  return {
    rounds: windows,
    ...counts,
    give: (k, slot) => slot.set(windowOf(buffer, k)),
    take: (k, slots) => sumInChunkOrder(slots, windowOf(buffer, k), k * slotFloats, buffer.length),
  };
}

/** Two rounds per window: each member sums one share of it, then all copy everyone's. Less work, one more meeting. */
function sharedSum(place: number, members: number, buffer: Float32Array): Pick<Work, 'give' | 'take'> {
  const shareOf = (window: Float32Array, of: number): [number, number] => [
    chunkStart(window.length, members, of),
    chunkStart(window.length, members, of + 1),
  ];
  return {
    give: (k, slot) => {
      const window = windowOf(buffer, k >> 1);
      slot.set(k % 2 === 0 ? window : window.subarray(...shareOf(window, place)));
    },
    take: (k, slots) => {
      const window = windowOf(buffer, k >> 1);
      if (k % 2 === 0) {
        const [start, end] = shareOf(window, place);
        const parts = slots.map((slot) => slot.subarray(start, end));
        sumInChunkOrder(parts, window.subarray(start, end), (k >> 1) * slotFloats + start, buffer.length);
      } else {
        for (const [of, slot] of slots.entries()) copyTo(slot, window.subarray(...shareOf(window, of)));
      }
    },
  };
}

/** @param parts [members] where each member's part goes; this one's is already there */
export function gatherWork(place: number, parts: readonly Float32Array[]): Work {
  const lengths = parts.map((part) => part.length);
  const own = parts[place] ?? new Float32Array(0);
  return {
    rounds: Math.ceil(Math.max(...lengths) / slotFloats),
    sent: own.length,
    received: lengths.reduce((sum, length) => sum + length, 0) - own.length,
    give: (k, slot) => slot.set(windowOf(own, k)),
    take: (k, slots) => {
      for (const [of, part] of parts.entries()) if (of !== place) copyTo(slots[of], windowOf(part, k));
    },
  };
}

/** Copies `buffer` of the member at `from` to all. */
export function copyWork(place: number, from: number, buffer: Float32Array): Work {
  const isSource = place === from;
  return {
    rounds: Math.ceil(buffer.length / slotFloats),
    sent: isSource ? buffer.length : 0,
    received: isSource ? 0 : buffer.length,
    give: (k, slot) => {
      if (isSource) slot.set(windowOf(buffer, k));
    },
    take: (k, slots) => {
      if (!isSource) copyTo(slots[from], windowOf(buffer, k));
    },
  };
}

function nothing(): void {}

/** The k-th stretch of slotFloats elements; the last may be shorter, and beyond the end it is empty. */
function windowOf(buffer: Float32Array, k: number): Float32Array {
  // Most buffers are one window, and making a view of them takes as long as summing them.
  if (k === 0 && buffer.length <= slotFloats) return buffer;
  return buffer.subarray(k * slotFloats, (k + 1) * slotFloats);
}

function copyTo(slot: Float32Array | undefined, window: Float32Array): void {
  if (slot) window.set(slot.subarray(0, window.length));
}
