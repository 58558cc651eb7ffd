/**
 * All-reduce in two steps: every rank is sent its chunk of all buffers and sums it in the order of ring.ts, then sends the
 * sum to all. Per rank 2 n (worldSize - 1) / worldSize elements sent, as around the ring, but in 2 steps instead of
 * 2 (worldSize - 1). A lossy payload rounds each value twice, whatever worldSize is: on its way to the sum, and the sum.
 */
import { receiveFromAll } from './direct.ts';
import { carried, type Payload } from './payload.ts';
import { chunkStart, sumInChunkOrder } from './ring.ts';
import type { Transport } from './ring.ts';

export async function scatterAllReduce(
  transport: Transport,
  buffer: Float32Array,
  scratch: readonly Float32Array[], // [worldSize] of at least this rank's chunk; overwritten
  payload: Payload,
): Promise<void> {
  const { rank, worldSize } = transport;
  const total = buffer.length;
  const chunks = scratch.map((_, c) =>
    buffer.subarray(chunkStart(total, worldSize, c), chunkStart(total, worldSize, c + 1)),
  );
  for (const [to, chunk] of chunks.entries()) {
    if (to !== rank && chunk.length > 0) await transport.send(to, 0, chunk, payload);
  }
  const own = chunks[rank] ?? buffer;
  const parts = scratch.map((part) => part.subarray(0, own.length)); // [worldSize]: this rank's chunk of every buffer
  parts[rank]?.set(own);
  await receiveFromAll(transport, 0, parts);
  sumInChunkOrder(parts, own, chunkStart(total, worldSize, rank), total);
  if (own.length > 0) await transport.sendToAll(1, own, payload);
  carried(own, payload);
  await receiveFromAll(transport, 1, chunks);
}
