/** Requests that measure instead of computing: for `tpla doctor` and the benchmarks. Part of messages.ts. */
import { z } from 'zod';

const count = z.number().int().nonnegative();

/** Runs `count` all-reduces of `floats` elements, checks every element, replies with latencies. */
export const collectiveCheckSchema = z.strictObject({
  kind: z.literal('collectiveCheck'),
  id: count,
  floats: count,
  count,
});

/**
 * Times products on the rank's backend. Payload: GB/s of a matrix-vector product, GFLOP/s of a matrix-matrix product,
 * and bytes of memory that its host has free and in all. [4]
 */
export const computeCheckSchema = z.strictObject({ kind: z.literal('computeCheck'), id: count });

/**
 * `floats` elements from rank `from` to rank `to` and back, `count` times, over the sockets between them; the others
 * wait. Rank `from` replies with the latency of each round trip; where sums do not go over sockets nobody has any.
 */
export const linkCheckSchema = z.strictObject({
  kind: z.literal('linkCheck'),
  id: count,
  from: count,
  to: count,
  floats: count,
  count,
});

/** The payload comes back: times the way to one rank over the control plane. */
export const echoSchema = z.strictObject({ kind: z.literal('echo'), id: count });
