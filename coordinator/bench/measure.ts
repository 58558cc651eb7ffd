/**
 * Times one running cluster at one context length and batch: a prompt as prefill, then greedy decode steps, several
 * times over. Tokens are arbitrary but fixed, so that every cluster computes the same. Read next: report.ts.
 */
import { InvariantError } from '../../config/errors.ts';
import { isExact } from '../../config/schemes.ts';
import type { Step } from '../../collective/messages.ts';
import type { StepResult } from '../ask-ranks.ts';
import type { Cluster } from '../cluster.ts';
import { spreadOf, type BenchRow, type RankRow } from './report.ts';

export interface Workload {
  /** Tokens of the prompt of each sequence. */
  readonly context: number;
  /** The prompt is not run: its rows of the cache hold zeros, over which decode takes as long. */
  readonly skipPrefill: boolean;
  /** Sequences that are decoded together. */
  readonly batch: number;
  /** Timed decode steps of a repetition. */
  readonly decodeSteps: number;
  readonly repetitions: number;
}

/** Tokens of the prompt whose logits are compared before anything is timed. */
const checkedTokens = 24;
/**
 * Nats between two runs of the same arithmetic in another order. Products with quantised weights round their input to
 * 8 bits, and one rounding that falls the other way moves SmolLM2 by 1e-3 to 6e-3 nats.
 */
const largestDivergence = { float: 1e-4, quantised: 0.05 };

/** Logits of a fixed prompt, its last token decoded. [vocabSize] */
export async function checkLogits(cluster: Cluster): Promise<Float32Array> {
  const ids = tokensOf(0, checkedTokens, cluster.vocabSize);
  await cluster.step({ ...stepOf('prefill', 0, 0, ids.slice(0, -1)), want: { kind: 'none' } });
  const { logits } = await cluster.step(stepOf('decode', 0, ids.length - 1, ids.slice(-1)));
  if (logits.every((value) => Number.isFinite(value))) return logits;
  throw new InvariantError(`bench: ${cluster.plan.scheme} on ${cluster.plan.worldSize} ranks: logits are not finite`);
}

/**
 * Kullback-Leibler divergence of the cluster's next token from the reference's, in nats.
 * @throws InvariantError when an exact scheme differs by more than rounding: its speed would mean nothing
 */
export function verify(cluster: Cluster, logits: Float32Array, reference: Float32Array): number {
  const divergence = klDivergence(reference, logits);
  const { scheme, worldSize, latentGroups } = cluster.plan;
  const { weights, cacheType } = cluster.options;
  const limit = weights === 'f32' && cacheType === 'f32' ? largestDivergence.float : largestDivergence.quantised;
  if (isExact(scheme, latentGroups) && !(divergence < limit))
    throw new InvariantError(
      `bench: ${scheme} on ${worldSize} ranks: next token differs from the first measured cluster's by ` +
        `${divergence.toExponential(1)} nats, expected less than ${limit}`,
    );
  return divergence;
}

export async function measure(
  cluster: Cluster,
  workload: Workload,
  divergence: number,
  tick: () => void,
): Promise<BenchRow> {
  const { context, batch, repetitions } = workload;
  const runs: Run[] = [];
  // The first run builds programs and warms caches.
  for (let i = 0; i <= repetitions; i++) {
    const run = await runOnce(cluster, workload);
    if (i > 0) runs.push(run);
    tick();
  }
  const { scheme, worldSize } = cluster.plan;
  const perRank = Array.from({ length: worldSize }, (_, rank) => rankRow(cluster, runs, rank));
  const mean = (pick: (row: RankRow) => number): number => perRank.reduce((sum, row) => sum + pick(row), 0) / worldSize;
  const perSecond = (count: number, pick: (run: Run) => number) =>
    spreadOf(runs.map((run) => (1000 * count) / pick(run)));
  const prefill = perSecond(workload.skipPrefill ? 0 : batch * context, (run) => run.prefillMs);
  const decode = perSecond(batch, (run) => run.stepMs);
  const ttft = spreadOf(runs.map((run) => run.ttftMs));
  return {
    scheme,
    ranks: worldSize,
    context,
    batch,
    repetitions,
    prefillTokensPerSecond: prefill.median,
    prefillSpread: prefill,
    decodeTokensPerSecond: decode.median,
    decodeSpread: decode,
    ttftMs: ttft.median,
    ttftSpread: ttft,
    stepMs: spreadOf(runs.map((run) => run.stepMs)).median,
    computeMs: mean((row) => row.computeMs),
    waitMs: mean((row) => row.waitMs),
    cacheBytesPerTokenPerRank: cacheBytesPerToken(cluster) / worldSize,
    bytesPerTokenPerRank: mean((row) => row.bytesSent),
    divergence,
    transport: cluster.ranks[0]?.transport ?? 'none',
    perRank,
  };
}

/** One repetition. Of decode steps the median counts: a step that another process interrupts says nothing of ours. */
interface Run {
  readonly prefillMs: number;
  /** Of the first sequence. */
  readonly ttftMs: number;
  readonly stepMs: number;
  readonly steps: readonly StepResult[];
}

async function runOnce(cluster: Cluster, { context, skipPrefill, batch, decodeSteps }: Workload): Promise<Run> {
  const startedAt = performance.now();
  let ttftMs = 0;
  const next: number[] = [];
  for (let slot = 0; slot < batch; slot++) {
    next.push(skipPrefill ? 1 : argmax(await prefill(cluster, slot, context)));
    if (slot === 0) ttftMs = performance.now() - startedAt;
  }
  const prefillMs = performance.now() - startedAt;
  const steps: StepResult[] = [];
  const times: number[] = [];
  for (let i = 0; i < decodeSteps; i++) {
    const before = performance.now();
    const result = await cluster.step({
      phase: 'decode',
      sequences: next.map((token, slot) => ({ slot, start: context + i, tokens: [token] })),
      want: { kind: 'last' },
    });
    next.forEach((_, slot) => {
      next[slot] = argmax(result.logits.subarray(slot * cluster.vocabSize, (slot + 1) * cluster.vocabSize));
    });
    times.push(performance.now() - before);
    steps.push(result);
  }
  return { prefillMs, ttftMs, stepMs: spreadOf(times).median, steps };
}

/** @returns logits after the last token of the prompt. [vocabSize] */
async function prefill(cluster: Cluster, slot: number, context: number): Promise<Float32Array> {
  const ids = tokensOf(slot, context, cluster.vocabSize);
  const { maxStepTokens } = cluster.options;
  let logits: Float32Array = new Float32Array(0);
  for (let start = 0; start < context; start += maxStepTokens) {
    const piece = ids.slice(start, start + maxStepTokens);
    const want: Step['want'] = { kind: start + maxStepTokens >= context ? 'last' : 'none' };
    ({ logits } = await cluster.step({ ...stepOf('prefill', slot, start, piece), want }));
  }
  return logits;
}

/** Medians over all decode steps, per step. */
function rankRow(cluster: Cluster, runs: readonly Run[], rank: number): RankRow {
  const replies = runs.flatMap((run) => run.steps.flatMap((step) => step.perRank[rank] ?? []));
  const median = (pick: (reply: (typeof replies)[number]) => number): number => spreadOf(replies.map(pick)).median;
  return {
    rank,
    computeMs: median((reply) => reply.computeMs),
    waitMs: median((reply) => reply.waitMs),
    bytesSent: median((reply) => reply.bytesSent),
    bytesReceived: median((reply) => reply.bytesReceived),
    weightBytes: cluster.ranks[rank]?.weightBytes ?? 0,
    cacheBytesPerToken: cluster.ranks[rank]?.cacheBytesPerToken ?? 0,
    rssBytes: Math.max(...replies.map((reply) => reply.rssBytes)),
  };
}

function stepOf(phase: Step['phase'], slot: number, start: number, tokens: number[]): Omit<Step, 'kind' | 'id'> {
  return { phase, sequences: [{ slot, start, tokens }], want: { kind: 'last' } };
}

/** Spread over the vocabulary, another series for each sequence. */
function tokensOf(slot: number, length: number, vocabSize: number): number[] {
  return Array.from({ length }, (_, i) => (7919 * (i + 1) + 104_729 * slot) % vocabSize);
}

function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] ?? 0) > (values[best] ?? 0)) best = i;
  return best;
}

function klDivergence(p: Float32Array, q: Float32Array): number {
  const [logP, logQ] = [logSoftmax(p), logSoftmax(q)];
  return logP.reduce((sum, value, i) => sum + Math.exp(value) * (value - (logQ[i] ?? 0)), 0);
}

function logSoftmax(values: Float32Array): Float64Array {
  const max = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const total = max + Math.log(values.reduce((sum, value) => sum + Math.exp(value - max), 0));
  return Float64Array.from(values, (value) => value - total);
}

/** Bytes that one token takes in the caches of all ranks together. */
function cacheBytesPerToken(cluster: Cluster): number {
  return cluster.ranks.reduce((sum, rank) => sum + rank.cacheBytesPerToken, 0);
}
