/**
 * The first words of a rank: hello of one that the coordinator started, offer of one that joins, and the refusal of an
 * offer. Part of messages.ts, which says when each is sent.
 */
import { z } from 'zod';

const count = z.number().int().nonnegative();

export const helloSchema = z.strictObject({
  kind: z.literal('hello'),
  rank: count,
  pid: count,
  host: z.string(),
  protocol: count,
  /** Package version. */
  version: z.string(),
  /** Proves that this worker was started by (or for) this coordinator. */
  token: z.string(),
  /** Where this rank's predecessor in the ring sends its frames. */
  ringEndpoint: z.string(),
  /** Public key of that socket, Z85; empty: frames travel in the clear. */
  ringKey: z.string().max(40),
});
export type Hello = z.infer<typeof helloSchema>;

/** Of a process that nobody on the coordinator's machine started: it joins, knows its model, and is given a rank. */
export const offerSchema = z.strictObject({
  ...helloSchema.shape,
  kind: z.literal('offer'),
  /** null: any that is free. */
  rank: count.nullable(),
  /** How many ranks its launcher says there are; null: it does not say. */
  worldSize: count.nullable(),
  /** Checkpoint.identity of its own copy of the model. */
  modelIdentity: z.string(),
});
export type Offer = z.infer<typeof offerSchema>;

/** What every version's hello and offer hold, so that another version can be refused by name. */
export const greetingSchema = z.object({
  kind: z.enum(['hello', 'offer']),
  host: z.string().max(255),
  protocol: count,
  version: z.string().max(64),
});

/** What the process of a rank tells `tpla worker`, its parent. */
export const toWorkerSchema = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('placed'), rank: count, worldSize: count }),
  /** Fault drills: stop me for so long. */
  z.strictObject({ kind: z.literal('freeze'), ms: count }),
]);
export type ToWorker = z.infer<typeof toWorkerSchema>;

/** Answer to an offer that cannot be taken, or not now; the process may offer itself again later. */
export const refusedSchema = z.strictObject({ kind: z.literal('refused'), reason: z.string() });
