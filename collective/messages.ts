/**
 * Every message that crosses the control plane between the coordinator (ZeroMQ ROUTER) and a rank (DEALER), as zod
 * schemas: what arrives is unknown until parsed once. Numbers in bulk (logits, moments) travel beside the message as
 * raw float32 payloads, see frame.ts.
 *
 * A run: rank sends hello; coordinator answers setup when all ranks have said hello; rank joins its ring, loads its
 * slice (sending loading meanwhile), sends ready; then the coordinator sends requests, and each rank answers each with
 * one reply or with failed.
 * A rank on another machine sends offer instead of hello: the coordinator gives it a rank, or answers refused.
 * After a fault: the rank that is started again is set up as above, with the next epoch; the others are sent rejoin,
 * give up what they were doing, keep their weights, join the new ring and send ready again.
 */
import { z } from 'zod';
import { collectiveCheckSchema, computeCheckSchema, echoSchema, linkCheckSchema } from './check-requests.ts';
import { helloSchema, offerSchema, refusedSchema, type Offer } from './greetings.ts';
import { fitSteps } from '../config/schemes.ts';
import { rejoinSchema, setupSchema } from './setup.ts';

/** Raised whenever a message or a collective frame changes meaning; ranks of another version are refused by name. */
export const protocolVersion = 8;

const count = z.number().int().nonnegative();

/** What a step returns. Each rank sends its vocabulary rows; the coordinator joins them. */
export const wantSchema = z.discriminatedUnion('kind', [
  /** nothing: more of the prompt follows */
  z.strictObject({ kind: z.literal('none') }),
  /** payload [sequences, localVocab]: logits after the last token of each sequence */
  z.strictObject({ kind: z.literal('last') }),
  /** payload [tokens, localVocab]: logits after every token of the step */
  z.strictObject({ kind: z.literal('all') }),
  /**
   * payload [tokens, 3]: max, sum of exp(logit - max), and the logit of targets[t], over the local vocabulary
   * (-Infinity where the target is another rank's). targets[t] = -1: not scored, row of zeros.
   */
  z.strictObject({ kind: z.literal('score'), targets: z.array(z.number().int()) }),
]);
export type Want = z.infer<typeof wantSchema>;

/** Whether the rank can still be reached; needs no answer. Read between two awaits, so never a sign of life. */
const probeSchema = z.strictObject({ kind: z.literal('probe') });

/** Misbehaviour on demand, for drills. Refused unless the setup allowed it. */
const chaosSchema = z.strictObject({
  kind: z.literal('chaos'),
  /**
   * slow: the next request begins `ms` late; garble: one bit of the next frame to rank `peer` is flipped; cut: frames to
   * rank `peer` are dropped until the next epoch; memory: the heap is filled until the process ends of it; of ranks that
   * `tpla worker` started, kill: by SIGKILL, freeze: stopped for `ms`.
   */
  action: z.enum(['slow', 'garble', 'cut', 'memory', 'kill', 'freeze']),
  peer: count,
  ms: count,
});
export type Chaos = z.infer<typeof chaosSchema>;

/** Between setup and ready: how much of the model this rank has read, for a progress bar. Needs no answer. */
const loadingSchema = z.strictObject({
  kind: z.literal('loading'),
  rank: count,
  epoch: count,
  /** Layers that are loaded. */
  layers: count,
});

const readySchema = z.strictObject({
  kind: z.literal('ready'),
  rank: count,
  /** Of the setup or rejoin that this answers. */
  epoch: count,
  loadMs: z.number(),
  weightBytes: count,
  /** Bytes that one token takes in this rank's cache, all layers, measured from what was allocated. */
  cacheBytesPerToken: z.number(),
  /** All memory of the cache: every slot at full context, and what is kept beside it. */
  cacheBytes: count,
  device: z.string(),
  /** 'zeromq ring', 'zeromq direct', 'shared memory', 'none': what carries the sums. */
  transport: z.string(),
  rssBytes: count,
});
export type Ready = z.infer<typeof readySchema>;

/** One forward pass over some tokens of one or more sequences. */
const stepSchema = z.strictObject({
  kind: z.literal('step'),
  id: count,
  /** prefill: exact attention where the scheme separates the phases; decode: the attention of the decode phase, also for a block of tokens. */
  phase: z.enum(['prefill', 'decode']),
  sequences: z.array(
    z.strictObject({
      slot: count,
      /** Position of the first token = tokens of this sequence already in the cache. */
      start: count,
      tokens: z.array(count),
    }),
  ),
  want: wantSchema,
});
export type Step = z.infer<typeof stepSchema>;

/**
 * Second moments of the layer inputs, for conversion. begin: allocate and accumulate over the following prefill steps;
 * read: payload [rows of this rank, D] then [D]: sum of h h^T (h = normed layer input with gain) and sum of h; end: free.
 */
const momentsSchema = z.strictObject({
  kind: z.literal('moments'),
  id: count,
  action: z.enum(['begin', 'read', 'end']),
  layer: count,
});

/**
 * Statistics and refit of every layer for the conversion of recipes: see worker/calibration/. All sums are returned by
 * segments of windows (window-sums.ts). begin: windows of equal length, of a conversion with near tokens how many; statistics: fields of statistics.ts for one
 * layer, layers in order; end: free. With `refits`, each layer's statistics are followed by: original (the original
 * stream passes the layer), attend (maps in the payload; normal equations of W_UV), values (W_UV; normal equations of
 * W_O), advance (W_O; the converted stream passes the layer); payloads: refit-maps.ts. sizes: before the first original.
 * align: converted streams become the original ones; follow: original and align of the next layer, without statistics.
 * streams: both of the rank's windows [windows][2][T, D]; restore: those of all windows before `layer`, to go on there.
 */
const calibrationSchema = z.discriminatedUnion('action', [
  z.strictObject({
    kind: z.literal('calibration'),
    id: count,
    action: z.literal('begin'),
    windows: z.array(z.array(count)),
    refits: z.boolean(),
    near: z.strictObject({ sinks: count, window: count }).optional(),
    without: z.array(z.enum(fitSteps)).optional(),
  }),
  z.strictObject({
    kind: z.literal('calibration'),
    id: count,
    action: z.enum(['statistics', 'follow', 'restore']),
    layer: count,
  }),
  z.strictObject({
    kind: z.literal('calibration'),
    id: count,
    action: z.literal('sizes'),
    ropeDim: count,
    latentDim: count,
  }),
  z.strictObject({
    kind: z.literal('calibration'),
    id: count,
    action: z.enum(['original', 'attend', 'values', 'advance', 'align', 'streams', 'end']),
  }),
]);
export type CalibrationRequest = z.infer<typeof calibrationSchema>;

const stopSchema = z.strictObject({ kind: z.literal('stop') });

const stepTimings = {
  computeMs: z.number(),
  waitMs: z.number(),
  bytesSent: count,
  bytesReceived: count,
};

const replySchema = z.strictObject({
  kind: z.literal('reply'),
  rank: count,
  /** The request's id. */
  id: count,
  /** Of this request alone. */
  ...stepTimings,
  rssBytes: count,
  /** Of the process so far, loading included. */
  peakRssBytes: count,
  /** collectiveCheck, linkCheck: microseconds of each operation, sorted. Otherwise empty. */
  latenciesUs: z.array(z.number()),
});
export type Reply = z.infer<typeof replySchema>;

const failedSchema = z.strictObject({
  kind: z.literal('failed'),
  rank: count,
  /** Of the ring that the rank was in, or was joining. */
  epoch: count,
  /** The request's id; null: before or outside any request. */
  id: count.nullable(),
  error: z.enum(['ConfigError', 'PeerError', 'InvariantError']),
  message: z.string(),
});
export type Failed = z.infer<typeof failedSchema>;

export const toRankSchema = z.discriminatedUnion('kind', [
  setupSchema,
  stepSchema,
  momentsSchema,
  calibrationSchema,
  collectiveCheckSchema,
  computeCheckSchema,
  linkCheckSchema,
  echoSchema,
  rejoinSchema,
  probeSchema,
  chaosSchema,
  refusedSchema,
  stopSchema,
]);
export type ToRank = z.infer<typeof toRankSchema>;
/** The messages that carry an id and are answered by one reply. */
export type RankRequest = Extract<ToRank, { id: number }>;

export const toCoordinatorSchema = z.discriminatedUnion('kind', [
  helloSchema,
  offerSchema,
  loadingSchema,
  readySchema,
  replySchema,
  failedSchema,
]);
export type FromRank = z.infer<typeof toCoordinatorSchema>;
/** What ControlServer passes on: an offer that was taken arrives as the hello of the rank it was given. */
export type ToCoordinator = Exclude<FromRank, Offer>;
