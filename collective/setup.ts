/**
 * What a rank is told before it loads, and again when another was lost: its part, how to compute, who the others are and
 * how to reach them. Part of messages.ts, which says when each is sent.
 */
import { z } from 'zod';
import { payloadNames } from '../config/cluster.ts';
import { schemes } from '../config/schemes.ts';
import { expertShardings } from '../config/shard-plan.ts';

const count = z.number().int().nonnegative();
const range = z.strictObject({ start: count, end: count });

const shardPlanSchema = z.strictObject({
  scheme: z.enum(schemes),
  worldSize: count,
  latentGroups: count,
  exactTokens: z.strictObject({ sinks: count, window: count }),
  expertSharding: z.enum(expertShardings),
  ranks: z
    .array(
      z.strictObject({
        rank: count,
        heads: range,
        prefillHeads: range,
        kvHeads: range,
        latent: range,
        sharedLatent: range,
        ropeKey: range,
        positions: z.strictObject({ part: count, parts: count, block: count }),
        feedForward: range,
        experts: range,
        expertColumns: range,
        sharedColumns: range,
        vocab: range,
      }),
    )
    .readonly(),
});

/** How a rank computes; the same on every rank except `device`. */
const workerOptionsSchema = z.strictObject({
  backend: z.enum(['ggml', 'gpujs', 'reference']),
  /** Device name of the backend; empty: its default. */
  device: z.string(),
  threads: count,
  transport: z.enum(['auto', 'shm', 'zeromq', 'mpi']),
  /** Storage type of matrices: as in the file, or requantised while loading. */
  weights: z.enum(['keep', 'f32', 'f16', 'q8_0', 'q4_0', 'q4_K']),
  cacheType: z.enum(['f32', 'f16', 'q8_0']),
  /** Tokens that one sequence may hold. */
  contextTokens: count,
  /** Sequences that may be in the cache at once. */
  slots: count,
  /** Most tokens of one step. */
  maxStepTokens: count,
  reparameterization: z.enum(['weighted', 'pca', 'hadamard', 'none']),
  /** Folder with corrections of cut attention (model/tpla/decode-fit.ts); empty: none. */
  corrections: z.string(),
  /** exact: prefill/decode separation; sliced: prefill uses the decode arithmetic. */
  prefill: z.enum(['exact', 'sliced']),
  /** sliced: decode norms the columns of the shard alone; only for models that norm their latent. */
  norm: z.enum(['exact', 'sliced']),
  /** Deadline of every receive of a collective. */
  timeoutMs: count,
  /** What the sums behind attention and feed-forward travel as between hosts. */
  payload: z.enum(payloadNames),
});
export type WorkerOptions = z.infer<typeof workerOptionsSchema>;

export const setupSchema = z.strictObject({
  kind: z.literal('setup'),
  rank: count,
  worldSize: count,
  /** Raised at every restart of a rank; frames of another epoch are dropped. */
  epoch: count,
  modelPath: z.string(),
  /** Checkpoint.identity as the coordinator computed it; a rank whose own differs refuses. */
  modelIdentity: z.string(),
  plan: shardPlanSchema,
  options: workerOptionsSchema,
  /** Endpoint of every rank, by rank. */
  ringEndpoints: z.array(z.string()),
  /** Their public keys; empty: frames travel in the clear. */
  ringKeys: z.array(z.string()),
  /** Name of each rank's host, by rank: who may share memory. */
  hosts: z.array(z.string()),
  /** Where shared-memory segments of this run are named. */
  runId: z.string(),
  /** Whether `chaos` messages are obeyed: only in fault drills. */
  chaos: z.boolean(),
});
export type Setup = z.infer<typeof setupSchema>;

/** To a rank whose weights are loaded, when another rank was lost. Answered by ready. */
export const rejoinSchema = z.strictObject({
  kind: z.literal('rejoin'),
  epoch: count,
  /** Endpoint of every rank, by rank. */
  ringEndpoints: z.array(z.string()),
  /** Their public keys; empty: frames travel in the clear. */
  ringKeys: z.array(z.string()),
  /** Name of each rank's host, by rank: who may share memory. */
  hosts: z.array(z.string()),
});
export type Rejoin = z.infer<typeof rejoinSchema>;
