/** Questions and choices as tokens, and what share of the questions was answered rightly. Read next: commands/eval-choice.ts. */
import type { ModelText } from '../text.ts';

export interface ChoiceItem {
  readonly task: string;
  readonly question: string;
  readonly choices: readonly string[];
  readonly context_options?: readonly string[] | undefined;
  readonly continuation?: string | undefined;
}

export interface TokenPair {
  /** Question and choice. */
  readonly ids: readonly number[];
  /** First token of the choice; at least 1. */
  readonly from: number;
  /** Length of the choice in UTF-8. */
  readonly bytes: number;
}

export type Cue = 'auto' | 'answer' | 'none';

/** Their questions break off where the choice goes on. */
const tasksWithoutCue = new Set(['hellaswag', 'copa', 'openbookqa']);

/** One pair for each choice; with context_options, one for each of those, the same continuation behind all. */
export function continuationsOf(item: ChoiceItem, cue: Cue, text: ModelText): TokenPair[] {
  if (item.context_options !== undefined && item.continuation !== undefined) {
    const { continuation } = item;
    return item.context_options.map((start) => pairOf(start, continuation, text));
  }
  const hasCue = cue === 'answer' || (cue === 'auto' && !tasksWithoutCue.has(item.task));
  const start = hasCue ? `${item.question}\nAnswer:` : item.question;
  return item.choices.map((choice) => pairOf(start, choice, text));
}

/** Tokens of both in one piece, cut where they stop being those of the start: a token may reach over the seam. */
function pairOf(start: string, continuation: string, text: ModelText): TokenPair {
  const seam = /^[\s,.;:!?']/.test(continuation) || /\s$/.test(start) ? '' : ' ';
  const alone = text.encodeRaw(start);
  const ids = text.encodeRaw(start + seam + continuation);
  let from = 0;
  while (from < alone.length && from < ids.length - 1 && alone[from] === ids[from]) from++;
  return { ids, from: Math.max(1, from), bytes: Buffer.byteLength(continuation) };
}

export interface ScoredItem {
  readonly answer: number;
  readonly logprobs: readonly number[];
  readonly lengths: readonly number[];
}

export interface Accuracy {
  /** By the sum of the log-probabilities. */
  readonly accuracy: number;
  /** By the sum divided by the choice's length in bytes. */
  readonly normalizedAccuracy: number;
  /** Of `accuracy`. */
  readonly standardError: number;
  readonly items: number;
}

export function accuracyOf(items: readonly ScoredItem[]): Accuracy {
  const share = (pick: (item: ScoredItem) => number): number =>
    items.filter((item) => pick(item) === item.answer).length / items.length;
  const accuracy = share(({ logprobs }) => indexOfLargest(logprobs));
  return {
    accuracy,
    normalizedAccuracy: share(({ logprobs, lengths }) =>
      indexOfLargest(logprobs.map((logprob, i) => logprob / Math.max(1, lengths[i] ?? 1))),
    ),
    standardError: Math.sqrt((accuracy * (1 - accuracy)) / items.length),
    items: items.length,
  };
}

/** The first of equals. */
export function indexOfLargest(values: readonly number[]): number {
  return values.indexOf(Math.max(...values));
}
