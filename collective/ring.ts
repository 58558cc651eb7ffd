/**
 * Collectives around a ring, and the order in which all groups sum.
 *
 * Words: a buffer of n elements is cut into worldSize chunks; chunk c is [c n / worldSize, (c + 1) n / worldSize),
 * rounded down, and may be empty. A step is one transfer to the next rank and one from the previous.
 * All-reduce = reduce-scatter (worldSize - 1 steps; a chunk travels and each rank adds its own values) + all-gather
 * (worldSize - 1 steps; the finished chunk travels on and is copied). Per rank: 2 (worldSize - 1) steps and
 * 2 n (worldSize - 1) / worldSize elements sent, whatever worldSize is.
 *
 * Order: chunk c starts with the values of rank c and collects those of ranks c + 1, c + 2, ... (modulo worldSize),
 * each sum rounded to float32. Every group of this folder sums in this order, so all give the same bits.
 * Read next: mailbox.ts, which carries the transfers; direct.ts for short messages.
 */

import type { Payload } from './payload.ts';

/** Carries transfers between ranks during one operation. */
export interface Transport {
  readonly rank: number;
  readonly worldSize: number;
  /** `data` may be changed as soon as the promise resolves. */
  send(to: number, step: number, data: Float32Array, payload?: Payload): Promise<void>;
  /** As send, to all other ranks. */
  sendToAll(step: number, data: Float32Array, payload?: Payload): Promise<void>;
  /** Calls `take` with the elements in order, in one or more pieces; `offset` counts from the start of the transfer. */
  receive(
    from: number,
    step: number,
    length: number,
    take: (piece: Float32Array, offset: number) => void,
  ): Promise<void>;
}

/** First element of a chunk; of chunk `worldSize`: the length. */
export function chunkStart(length: number, worldSize: number, chunk: number): number {
  return Math.floor((length * chunk) / worldSize);
}

export async function ringAllReduce(transport: Transport, buffer: Float32Array): Promise<void> {
  const { rank, worldSize } = transport;
  const steps = worldSize - 1;
  for (let step = 0; step < steps; step++) {
    const target = chunkOf(buffer, worldSize, rank - step - 1);
    await exchange(transport, step, chunkOf(buffer, worldSize, rank - step), target, (piece, offset) => {
      for (let i = 0; i < piece.length; i++) target[offset + i]! += piece[i]!;
    });
  }
  for (let step = 0; step < steps; step++) {
    const target = chunkOf(buffer, worldSize, rank - step);
    const finished = chunkOf(buffer, worldSize, rank + 1 - step);
    await exchange(transport, steps + step, finished, target, (piece, offset) => target.set(piece, offset));
  }
}

/** worldSize - 1 steps; every part travels around the ring. `out` already holds this rank's part. */
export async function ringAllGather(
  transport: Transport,
  parts: readonly Float32Array[], // [worldSize] views of `out`
): Promise<void> {
  const { rank, worldSize } = transport;
  for (let step = 0; step < worldSize - 1; step++) {
    const target = parts[modulo(rank - step - 1, worldSize)]!;
    const known = parts[modulo(rank - step, worldSize)]!;
    await exchange(transport, step, known, target, (piece, offset) => target.set(piece, offset));
  }
}

/**
 * Adds one window of all ranks' buffers in the order defined above.
 * @param parts [worldSize] of at least `out.length` elements: each rank's values of the window
 * @param out the window [windowStart, windowStart + out.length) of a buffer of `total` elements; overwritten. Its
 *   memory is none of the parts'.
 */
export function sumInChunkOrder(
  parts: readonly Float32Array[],
  out: Float32Array,
  windowStart: number,
  total: number,
): void {
  const worldSize = parts.length;
  for (let chunk = 0; chunk < worldSize; chunk++) {
    const start = Math.max(chunkStart(total, worldSize, chunk) - windowStart, 0);
    const end = Math.min(chunkStart(total, worldSize, chunk + 1) - windowStart, out.length);
    if (end <= start) continue;
    if (worldSize === 1) out.set(parts[0]!.subarray(start, end), start);
    else addTwo(parts[chunk]!, parts[(chunk + 1) % worldSize]!, out, start, end);
    for (let k = 2; k < worldSize; k++) addTwo(out, parts[(chunk + k) % worldSize]!, out, start, end);
  }
}

/** A pass per rank is faster than a loop over ranks per element: the compiler sees three plain arrays. */
function addTwo(a: Float32Array, b: Float32Array, out: Float32Array, start: number, end: number): void {
  for (let i = start; i < end; i++) out[i] = a[i]! + b[i]!;
}

/** One step. Empty transfers are left out; both ends know the length. */
async function exchange(
  transport: Transport,
  step: number,
  outgoing: Float32Array,
  incoming: Float32Array,
  take: (piece: Float32Array, offset: number) => void,
): Promise<void> {
  const { rank, worldSize } = transport;
  if (outgoing.length > 0) await transport.send((rank + 1) % worldSize, step, outgoing);
  if (incoming.length > 0) await transport.receive((rank + worldSize - 1) % worldSize, step, incoming.length, take);
}

function chunkOf(buffer: Float32Array, worldSize: number, index: number): Float32Array {
  const chunk = modulo(index, worldSize);
  return buffer.subarray(chunkStart(buffer.length, worldSize, chunk), chunkStart(buffer.length, worldSize, chunk + 1));
}

function modulo(value: number, size: number): number {
  return ((value % size) + size) % size;
}
