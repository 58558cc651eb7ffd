/**
 * What a command asks of a cluster that is its own: one generation, the scores of given tokens, or their logits, all by
 * the same steps. Knows no chat template and prints nothing.
 * Read next: scheduler.ts (how a generation runs), cluster.ts (the steps).
 */
import type { Step, Want } from '../collective/messages.ts';
import type { Cluster } from './cluster.ts';
import type { Generation, GenerationEvent } from './generation.ts';
import { Scheduler } from './scheduler.ts';

/** Every window uses this one sequence of the cache. */
const slot = 0;

/**
 * One generation on a cluster that has no other work.
 * @throws ConfigError when the prompt does not leave room for one token in the context
 */
export function generate(cluster: Cluster, request: Generation): AsyncGenerator<GenerationEvent, void> {
  return new Scheduler(cluster, { maxQueued: 1 }).submit(request);
}

/** How the tokens of a window are run, for `score` and `windowLogits`. */
export interface WindowRequest {
  readonly ids: readonly number[];
  /** Tokens that are prefilled exactly; the rest runs with the attention of the decode phase. ids.length: all. */
  readonly decodeFrom: number;
  /** Of those, tokens that an earlier request has left in the cache and that need not run again. 0 when absent. */
  readonly cached?: number;
}

/**
 * Negative log-likelihood of each token given those before it. [ids.length]; 0 for the first token, and with
 * `decodeFrom` F > 0 for tokens up to F: their predictions come from the prefilled part.
 */
export async function score(cluster: Cluster, request: WindowRequest): Promise<Float64Array> {
  const { ids, decodeFrom } = request;
  const nll = new Float64Array(ids.length);
  const scoresAll = decodeFrom >= ids.length;
  for (const piece of piecesOf(cluster, request)) {
    const scored = scoresAll || piece.phase === 'decode';
    const targets = piece.tokens.map((_, i) => ids[piece.start + i + 1] ?? -1);
    const want: Want = scored ? { kind: 'score', targets } : { kind: 'none' };
    const result = await cluster.step(oneStep(piece.phase, piece.start, piece.tokens, want));
    // The score of position i is that of token i + 1.
    if (scored)
      nll.set(result.nll.subarray(0, Math.min(targets.length, ids.length - piece.start - 1)), piece.start + 1);
  }
  return nll;
}

export interface LogitRows {
  /** [rows, vocabSize] */
  readonly rows: Float32Array;
  /** Position of the first of them. */
  readonly firstRow: number;
}

/**
 * Logits after every token, piece by piece in order, so that a long window needs no more memory than a piece.
 * @param options from: rows before this one are left out (0, or decodeFrom); rowsAtOnce: most rows of a piece
 */
export async function* windowLogits(
  cluster: Cluster,
  request: WindowRequest,
  { from, rowsAtOnce }: { from: number; rowsAtOnce: number },
): AsyncGenerator<LogitRows, void> {
  for (const { phase, start, tokens } of piecesOf(cluster, request)) {
    if (start < from) {
      await cluster.step(oneStep(phase, start, tokens, { kind: 'none' }));
      continue;
    }
    for (let done = 0; done < tokens.length; done += rowsAtOnce) {
      const part = tokens.slice(done, done + rowsAtOnce);
      const { logits } = await cluster.step(oneStep(phase, start + done, part, { kind: 'all' }));
      yield { rows: logits, firstRow: start + done };
    }
  }
}

interface Piece {
  readonly phase: Step['phase'];
  readonly start: number;
  readonly tokens: number[];
}

/** Consecutive pieces of one phase each, none longer than a step may be. */
function piecesOf(cluster: Cluster, { ids, decodeFrom, cached = 0 }: WindowRequest): Piece[] {
  const { maxStepTokens } = cluster.options;
  const pieces: Piece[] = [];
  for (let start = cached; start < ids.length;) {
    const phase = start < decodeFrom ? 'prefill' : 'decode';
    const limit = phase === 'prefill' ? Math.min(decodeFrom, ids.length) : ids.length;
    const end = Math.min(limit, start + maxStepTokens);
    pieces.push({ phase, start, tokens: ids.slice(start, end) });
    start = end;
  }
  return pieces;
}

function oneStep(
  phase: Step['phase'],
  start: number,
  tokens: readonly number[],
  want: Want,
): Omit<Step, 'kind' | 'id'> {
  return { phase, sequences: [{ slot, start, tokens: [...tokens] }], want };
}
