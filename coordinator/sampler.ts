/**
 * Chooses a token from one row of logits: greedy, or drawn after repeat penalty, top-k, top-p, min-p and temperature,
 * in that order (llama.cpp's, so that known settings give known results). Pure functions; all randomness of the
 * program is the generator passed in. Read next: engine.ts, its only caller.
 */
import { InvariantError, invariant } from '../config/errors.ts';

export interface Sampling {
  /** 0: the most likely token, always. */
  readonly temperature: number;
  /** Most likely tokens that stay; 0: all. */
  readonly topK: number;
  /** The most likely tokens that together reach this probability stay; 1: all. */
  readonly topP: number;
  /** Tokens at least this likely, relative to the most likely one, stay; 0: all. */
  readonly minP: number;
  /** Divides positive and multiplies negative logits of recent tokens (CTRL, arXiv 1909.05858, section 4.1); 1: off. */
  readonly repeatPenalty: number;
}

/** Tokens that the repeat penalty looks back. */
export const repeatWindow = 64;

/** Uniform numbers in [0, 1). */
export type RandomSource = () => number;

/**
 * @param logits [vocabSize], left as it is  @param history tokens so far, the last `repeatWindow` of them are penalised
 * @returns the token id; of equally likely ones the smallest in greedy choice
 */
export function sampleToken(
  logits: Float32Array,
  history: readonly number[],
  sampling: Sampling,
  random: RandomSource,
): number {
  const scores = penalised(logits, history, sampling.repeatPenalty);
  if (sampling.temperature === 0) return argmax(scores);
  let candidates: readonly number[] =
    sampling.topK > 0 && sampling.topK < scores.length ? mostLikely(scores, sampling.topK) : allOf(scores);
  candidates = nucleus(scores, candidates, sampling.topP);
  candidates = likelyEnough(scores, candidates, sampling.minP);
  return draw(scores, candidates, sampling.temperature, random);
}

/** Index of the largest value, the first of equals. */
export function argmax(scores: Float32Array): number {
  let best = -1;
  let bestScore = -Infinity;
  for (let i = 0; i < scores.length; i++) {
    const score = scores[i] ?? NaN;
    // A message per logit would take 2 ms of every token.
    if (Number.isNaN(score)) throw new InvariantError(`logit ${i} is not a number`);
    if (score <= bestScore && best !== -1) continue;
    best = i;
    bestScore = score;
  }
  invariant(best !== -1, 'no logits to choose from');
  return best;
}

/**
 * xoshiro128** 1.1 (Blackman and Vigna, arXiv 1805.01407), its four words filled by splitmix32 from the seed.
 * The same seed gives the same numbers on every platform: only 32-bit integer operations are used.
 */
export function seededRandom(seed: number): RandomSource {
  let counter = seed >>> 0;
  const nextWord = (): number => {
    counter = (counter + 0x9e3779b9) >>> 0;
    let word = Math.imul(counter ^ (counter >>> 16), 0x21f0aaad);
    word = Math.imul(word ^ (word >>> 15), 0x735a2d97);
    return (word ^ (word >>> 15)) >>> 0;
  };
  let [s0, s1, s2, s3] = [nextWord(), nextWord(), nextWord(), nextWord()];
  return () => {
    const result = Math.imul(rotateLeft(Math.imul(s1, 5), 7), 9) >>> 0;
    const shifted = s1 << 9;
    s2 ^= s0;
    s3 ^= s1;
    s1 ^= s2;
    s0 ^= s3;
    s2 ^= shifted;
    s3 = rotateLeft(s3, 11);
    return result / 2 ** 32;
  };
}

function rotateLeft(word: number, bits: number): number {
  return (word << bits) | (word >>> (32 - bits));
}

function penalised(logits: Float32Array, history: readonly number[], penalty: number): Float32Array {
  if (penalty === 1) return logits;
  const scores = logits.slice();
  for (const token of new Set(history.slice(-repeatWindow))) {
    const score = scores[token] ?? 0;
    scores[token] = score > 0 ? score / penalty : score * penalty;
  }
  return scores;
}

function allOf(scores: Float32Array): number[] {
  const tokens = new Array<number>(scores.length);
  for (let token = 0; token < tokens.length; token++) tokens[token] = token;
  return tokens;
}

/** The `count` tokens with the largest scores, in descending order; cost: one pass plus an insertion for each new entry. */
export function mostLikely(scores: Float32Array, count: number): number[] {
  const kept: number[] = [];
  const scoreAt = (place: number): number => scores[kept[place] ?? 0] ?? -Infinity;
  for (let token = 0; token < scores.length; token++) {
    const score = scores[token] ?? -Infinity;
    if (kept.length === count && score <= scoreAt(count - 1)) continue;
    let place = kept.length;
    while (place > 0 && scoreAt(place - 1) < score) place--;
    kept.splice(place, 0, token);
    if (kept.length > count) kept.pop();
  }
  return kept;
}

/** The smallest set of most likely tokens whose probabilities sum to at least topP (arXiv 1904.09751, section 3.1). */
function nucleus(scores: Float32Array, candidates: readonly number[], topP: number): readonly number[] {
  if (topP >= 1) return candidates;
  const probabilities = softmax(scores, candidates, 1);
  // All tokens below this line together weigh less than 1 - topP, so none of them can be needed: they need no sorting.
  const line = (1 - topP) / candidates.length;
  const order: { readonly token: number; readonly probability: number }[] = [];
  for (let place = 0; place < candidates.length; place++) {
    const probability = probabilities[place] ?? 0;
    if (probability >= line) order.push({ token: candidates[place] ?? 0, probability });
  }
  order.sort((a, b) => b.probability - a.probability || a.token - b.token);
  let sum = 0;
  const kept: number[] = [];
  for (const { token, probability } of order) {
    kept.push(token);
    sum += probability;
    if (sum >= topP) break;
  }
  return kept;
}

function likelyEnough(scores: Float32Array, candidates: readonly number[], minP: number): readonly number[] {
  if (minP <= 0) return candidates;
  // p >= minP * pMax in logits, where the softmax's denominator cancels.
  const line = maxOf(scores, candidates) + Math.log(minP);
  return candidates.filter((token) => (scores[token] ?? -Infinity) >= line);
}

function draw(scores: Float32Array, candidates: readonly number[], temperature: number, random: RandomSource): number {
  const probabilities = softmax(scores, candidates, temperature);
  let left = random();
  for (let place = 0; place < candidates.length; place++) {
    left -= probabilities[place] ?? 0;
    if (left < 0) return candidates[place] ?? 0;
  }
  // Rounding may leave a sliver above the sum of all probabilities.
  const last = candidates.at(-1);
  invariant(last !== undefined, 'sampling left no candidate');
  return last;
}

/** @returns [candidates.length] float64 */
function softmax(scores: Float32Array, candidates: readonly number[], temperature: number): Float64Array {
  const max = maxOf(scores, candidates);
  const out = new Float64Array(candidates.length);
  let sum = 0;
  for (let place = 0; place < out.length; place++) {
    const weight = Math.exp(((scores[candidates[place] ?? 0] ?? -Infinity) - max) / temperature);
    out[place] = weight;
    sum += weight;
  }
  invariant(Number.isFinite(sum), 'logits hold a value that is not a number');
  for (let place = 0; place < out.length; place++) out[place] = (out[place] ?? 0) / sum;
  return out;
}

function maxOf(scores: Float32Array, candidates: readonly number[]): number {
  let max = -Infinity;
  for (const token of candidates) max = Math.max(max, scores[token] ?? -Infinity);
  return max;
}
