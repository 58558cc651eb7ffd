/**
 * What a generation is: the request, the events it gives, what it cost. Shapes only, shared by the scheduler, the
 * commands and the HTTP server. Read next: scheduler.ts, which runs them.
 */
import { ConfigError } from '../config/errors.ts';
import type { TokenStream } from '../model/tokenizer.ts';
import type { Sampling } from './sampler.ts';

export interface Generation {
  /** Not empty. */
  readonly promptIds: readonly number[];
  readonly sampling: Sampling;
  readonly seed: number;
  readonly maxTokens: number;
  readonly stop: readonly string[];
  /** Tokens that end the answer; they give no text. */
  readonly endIds: readonly number[];
  /** Fresh: turns the tokens of this answer into whole characters. */
  readonly text: TokenStream;
  /** Added to the logit of a token before it is sampled. */
  readonly logitBias?: ReadonlyMap<number, number> | undefined;
  /** Taken from the logit of a token for each time that it was generated, and once if it was (OpenAI's formula). */
  readonly frequencyPenalty?: number | undefined;
  readonly presencePenalty?: number | undefined;
  /** Most likely tokens to report beside each generated one; undefined: no probabilities at all. */
  readonly topLogprobs?: number | undefined;
  /** Fresh: what the answer must look like. */
  readonly constraint?: TokenConstraint | undefined;
  /** Gives the slot back within one step; the events then end with the signal's reason. */
  readonly signal?: AbortSignal | undefined;
}

/** A form that the text of an answer must have, token by token. */
export interface TokenConstraint {
  /** Whether this token may come next; of end tokens: whether the text may end here. */
  allows(tokenId: number): boolean;
  /** Takes an allowed token. */
  push(tokenId: number): void;
  /** The text is whole, and nothing but the end may follow. */
  readonly done: boolean;
}

/** length: the limit of tokens or of the context was reached. */
export type FinishReason = 'stop' | 'length';

export type GenerationEvent =
  /** One token; `text` is what it completes and may be empty. */
  | {
      readonly kind: 'token';
      readonly tokenId: number;
      readonly text: string;
      readonly logprobs: TokenLogprobs | undefined;
    }
  /** The last event: text that had been held back, and the sums. */
  | { readonly kind: 'end'; readonly text: string; readonly finishReason: FinishReason; readonly usage: Usage };

/** Natural logarithms of the model's own probabilities: temperature 1, without penalties and bias. */
export interface TokenLogprobs {
  readonly logprob: number;
  /** The most likely tokens, in descending order. */
  readonly top: readonly { readonly tokenId: number; readonly logprob: number }[];
}

export interface Usage {
  readonly promptTokens: number;
  /** Of these, how many the cache held from an earlier request. */
  readonly reusedTokens: number;
  readonly generatedTokens: number;
  /** From the request to the first token, waiting for a slot included. */
  readonly ttftMs: number;
  readonly prefillTokensPerSecond: number;
  /** Of the tokens after the first; 0 when there are none. */
  readonly decodeTokensPerSecond: number;
  /** Of all steps that this generation had a part in. [worldSize] */
  readonly perRank: readonly RankUsage[];
}

export interface RankUsage {
  readonly rank: number;
  readonly computeMs: number;
  readonly waitMs: number;
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly peakRssBytes: number;
}

/** @throws ConfigError when the prompt is empty or leaves no room for a token of the answer */
export function requireRoom(promptTokens: number, contextTokens: number): void {
  if (promptTokens === 0) throw new ConfigError('prompt: it has no tokens; give a text');
  if (promptTokens < contextTokens) return;
  throw new ConfigError(
    `prompt: ${promptTokens} tokens and room for at least 1 more do not fit a context of ${contextTokens}; ` +
      `shorten it by ${promptTokens + 1 - contextTokens} or raise --context`,
  );
}
