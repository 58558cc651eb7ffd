/**
 * Collectives in one step: every rank sends to every other. Per rank (worldSize - 1) n elements sent, against
 * 2 n (worldSize - 1) / worldSize in 2 (worldSize - 1) steps around the ring: for short messages, where the step
 * costs more than the bytes. Sums in the order of ring.ts, so the result has the same bits.
 */
import { carried, type Payload } from './payload.ts';
import { sumInChunkOrder } from './ring.ts';
import type { Transport } from './ring.ts';

export async function directAllReduce(
  transport: Transport,
  buffer: Float32Array,
  scratch: readonly Float32Array[], // [worldSize] of at least buffer.length elements; overwritten
  payload: Payload,
): Promise<void> {
  if (buffer.length === 0) return;
  await transport.sendToAll(0, buffer, payload);
  carried(buffer, payload);
  const parts = scratch.map((part) => part.subarray(0, buffer.length));
  parts[transport.rank]?.set(buffer);
  await receiveFromAll(transport, 0, parts);
  sumInChunkOrder(parts, buffer, 0, buffer.length);
}

/** `parts` are views of the result; this rank's is already there. */
export async function directAllGather(
  transport: Transport,
  parts: readonly Float32Array[], // [worldSize], of different lengths
): Promise<void> {
  const own = parts[transport.rank];
  if (own && own.length > 0) await transport.sendToAll(0, own);
  await receiveFromAll(transport, 0, parts);
}

export async function directBroadcast(transport: Transport, buffer: Float32Array, root: number): Promise<void> {
  if (buffer.length === 0) return;
  if (transport.rank === root) return transport.sendToAll(0, buffer);
  await transport.receive(root, 0, buffer.length, (piece, offset) => buffer.set(piece, offset));
}

/** An empty frame to and from everyone. */
export async function directBarrier(transport: Transport): Promise<void> {
  await transport.sendToAll(0, new Float32Array(0));
  for (let from = 0; from < transport.worldSize; from++) {
    if (from !== transport.rank) await transport.receive(from, 0, 0, () => undefined);
  }
}

/** There in step 0, back in step 1. */
export async function directRoundTrip(
  transport: Transport,
  buffer: Float32Array,
  from: number,
  to: number,
): Promise<void> {
  const take = (piece: Float32Array, offset: number): void => buffer.set(piece, offset);
  if (transport.rank === from) {
    await transport.send(to, 0, buffer);
    return transport.receive(to, 1, buffer.length, take);
  }
  await transport.receive(from, 0, buffer.length, take);
  return transport.send(from, 1, buffer);
}

/** The same step of all other ranks. `parts` are where it goes, empty ones are not sent. */
export async function receiveFromAll(
  transport: Transport,
  step: number,
  parts: readonly Float32Array[], // [worldSize]
): Promise<void> {
  for (const [from, part] of parts.entries()) {
    if (from === transport.rank || part.length === 0) continue;
    await transport.receive(from, step, part.length, (piece, offset) => part.set(piece, offset));
  }
}
