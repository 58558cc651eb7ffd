/**
 * What perplexity needs of the logits, without sending them: per token the maximum and the sum of exponentials over
 * this rank's vocabulary, and the target's logit where the target is ours. The coordinator merges ranks by the usual
 * rescaling.
 */
import { size, type Range } from '../config/shard-plan.ts';

/**
 * @param x [tokens, hidden]  @param targets [tokens], -1: not scored  @param logitsOf [rows, hidden] -> [rows, localVocab]
 * @returns [tokens, 3]: max, sum of exp(logit - max), target logit or -Infinity; zeros where not scored
 */
export function scoreRows(
  x: Float32Array,
  hidden: number,
  targets: readonly number[],
  vocab: Range,
  blockRows: number,
  logitsOf: (rows: Float32Array) => Float32Array,
): Float32Array {
  const scores = new Float32Array(targets.length * 3);
  const localVocab = size(vocab);
  for (let first = 0; first < targets.length; first += blockRows) {
    const count = Math.min(blockRows, targets.length - first);
    if (targets.slice(first, first + count).every((target) => target < 0)) continue;
    const logits = logitsOf(x.subarray(first * hidden, (first + count) * hidden)); // [count, localVocab]
    for (let row = 0; row < count; row++) {
      const target = targets[first + row] ?? -1;
      if (target < 0) continue;
      const line = logits.subarray(row * localVocab, (row + 1) * localVocab);
      const isLocal = target >= vocab.start && target < vocab.end;
      const max = maxOf(line);
      scores.set(
        [max, sumOfExponentials(line, max), isLocal ? (line[target - vocab.start] ?? 0) : -Infinity],
        (first + row) * 3,
      );
    }
  }
  return scores;
}

function maxOf(values: Float32Array): number {
  let max = -Infinity;
  for (const value of values) if (value > max) max = value;
  return max;
}

function sumOfExponentials(values: Float32Array, max: number): number {
  let sum = 0;
  for (const value of values) sum += Math.exp(value - max);
  return sum;
}
