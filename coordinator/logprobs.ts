/** Log-probabilities of one row of logits, for clients that ask for them. Pure arithmetic in float64. */
import type { TokenLogprobs } from './generation.ts';
import { mostLikely } from './sampler.ts';

/** @param logits [vocabSize], as the model gave them  @param count tokens to list beside the chosen one */
export function logprobsOf(logits: Float32Array, tokenId: number, count: number): TokenLogprobs {
  let max = -Infinity;
  for (const logit of logits) if (logit > max) max = logit;
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - max);
  const offset = max + Math.log(sum);
  const logprob = (token: number): number => (logits[token] ?? -Infinity) - offset;
  return {
    logprob: logprob(tokenId),
    top: count === 0 ? [] : mostLikely(logits, count).map((token) => ({ tokenId: token, logprob: logprob(token) })),
  };
}
