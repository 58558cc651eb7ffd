/**
 * Puts together what ranks return of one step, each for its rows of the vocabulary: logits, or what is needed to score
 * a known next token. Pure arithmetic in float64. Read next: cluster.ts, which gathers the parts.
 */
import { invariant } from '../config/errors.ts';
import { size, type Range } from '../config/shard-plan.ts';

export interface VocabularyPart {
  /** Rows of the vocabulary that this rank holds. */
  readonly vocab: Range;
  /** What the rank sent. */
  readonly payload: Float32Array;
}

/**
 * Joins parts [rows, size(vocab)].
 * @param memory used for the result where it is large enough
 * @returns [rows, vocabSize]
 */
export function joinLogits(
  parts: readonly VocabularyPart[],
  rows: number,
  vocabSize: number,
  memory: Float32Array = new Float32Array(0),
): Float32Array {
  const numbers = rows * vocabSize;
  const logits = numbers <= memory.length ? memory.subarray(0, numbers) : new Float32Array(numbers);
  for (const { vocab, payload } of parts) {
    const width = size(vocab);
    invariant(payload.length === rows * width, `logits: expected ${rows} x ${width} numbers, got ${payload.length}`);
    for (let row = 0; row < rows; row++)
      logits.set(payload.subarray(row * width, (row + 1) * width), row * vocabSize + vocab.start);
  }
  return logits;
}

/**
 * Negative log-likelihood of each target: log(sum over the vocabulary of exp(logit)) - logit of the target, from each
 * part's (max, sum of exp(logit - max), target logit) [tokens, 3].
 * @returns [tokens]; 0 where targets[t] is -1 (not scored)
 */
export function combineScores(parts: readonly VocabularyPart[], targets: readonly number[]): Float64Array {
  const nll = new Float64Array(targets.length);
  for (const { payload } of parts)
    invariant(
      payload.length === 3 * targets.length,
      `scores: expected ${targets.length} x 3 numbers, got ${payload.length}`,
    );
  for (const [token, target] of targets.entries()) {
    if (target < 0) continue;
    let max = -Infinity;
    let targetLogit = -Infinity;
    for (const { vocab, payload } of parts) {
      if (size(vocab) === 0) continue;
      max = Math.max(max, payload[3 * token] ?? -Infinity);
      if (target >= vocab.start && target < vocab.end) targetLogit = payload[3 * token + 2] ?? -Infinity;
    }
    let sum = 0;
    for (const { vocab, payload } of parts) {
      if (size(vocab) === 0) continue;
      sum += (payload[3 * token + 1] ?? 0) * Math.exp((payload[3 * token] ?? -Infinity) - max);
    }
    nll[token] = max + Math.log(sum) - targetLogit;
  }
  return nll;
}

/**
 * Joins second moments: each rank sends its rows of the sum of h h^T, cut in equal shares, then the sum of h.
 * @returns outer [dim, dim], sum [dim]
 */
export function joinMoments(
  payloads: readonly Float32Array[],
  rows: readonly Range[],
  dim: number,
): { outer: Float32Array; sum: Float32Array } {
  const outer = new Float32Array(dim * dim);
  let sum: Float32Array | undefined;
  for (const [rank, payload] of payloads.entries()) {
    const range = rows[rank] ?? { start: 0, end: 0 };
    const expected = (size(range) + 1) * dim;
    invariant(
      payload.length === expected,
      `moments of rank ${rank}: expected ${expected} numbers, got ${payload.length}`,
    );
    outer.set(payload.subarray(0, size(range) * dim), range.start * dim);
    sum ??= payload.slice(size(range) * dim);
  }
  invariant(sum !== undefined, 'moments: no rank answered');
  return { outer, sum };
}
