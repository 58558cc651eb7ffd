/**
 * What a cluster's ranks can be asked besides a forward pass, and how the answers of all ranks become one: the logits of
 *a step and moments of the layer inputs. Starts nothing and waits for nothing itself.
 * Read next: join-shards.ts (the arithmetic), control-loop.ts (the waiting), calibration.ts.
 */
import { cut, type ShardPlan } from '../config/shard-plan.ts';
import type { RankRequest, Reply, Step } from '../collective/messages.ts';
import type { RankReply, WithoutId } from './control-loop.ts';
import { combineScores, joinLogits, joinMoments } from './join-shards.ts';

/** Sends a request, the same to every rank. @returns the replies by rank */
export type Ask = (request: WithoutId<RankRequest>, payload?: Float32Array) => Promise<RankReply[]>;

/** What one step returned; an array that the step did not ask for is empty. */
export interface StepResult {
  /** want last: [sequences, vocabSize]; want all: [tokens, vocabSize] */
  readonly logits: Float32Array;
  /** want score: negative log-likelihood of each target, 0 where it is -1. [tokens] */
  readonly nll: Float64Array;
  /** Timings and bytes of this step. [worldSize] */
  readonly perRank: readonly Reply[];
}

export interface MomentsRequests {
  /** Allocate and accumulate sums over the prefill steps that follow. */
  readonly begin: () => Promise<void>;
  /** outer [hiddenDim, hiddenDim]: sum of h h^T, sum [hiddenDim]: sum of h, over all tokens since begin (h: normed layer input). */
  readonly read: (layer: number) => Promise<{ outer: Float32Array; sum: Float32Array }>;
  /** Free them. */
  readonly end: () => Promise<void>;
}

/** Every rank's vocabulary rows side by side, or their scores combined. @param memory for logits, where it is large enough */
export function joinStep(
  plan: ShardPlan,
  vocabSize: number,
  step: Omit<Step, 'kind' | 'id'>,
  replies: readonly RankReply[],
  memory?: Float32Array,
): StepResult {
  const parts = replies.map(({ payload }, rank) => ({
    vocab: plan.ranks[rank]?.vocab ?? { start: 0, end: 0 },
    payload,
  }));
  const perRank = replies.map(({ reply }) => reply);
  const tokens = step.sequences.reduce((sum, sequence) => sum + sequence.tokens.length, 0);
  const result = { logits: new Float32Array(0), nll: new Float64Array(0), perRank };
  switch (step.want.kind) {
    case 'none':
      return result;
    case 'last':
      return { ...result, logits: joinLogits(parts, step.sequences.length, vocabSize, memory) };
    case 'all':
      return { ...result, logits: joinLogits(parts, tokens, vocabSize, memory) };
    case 'score':
      return { ...result, nll: combineScores(parts, step.want.targets) };
  }
}

export function momentsOf(ask: Ask, worldSize: number, hiddenDim: number): MomentsRequests {
  const act = async (action: 'begin' | 'end'): Promise<void> => {
    await ask({ kind: 'moments', action, layer: 0 });
  };
  return {
    begin: () => act('begin'),
    end: () => act('end'),
    async read(layer) {
      const replies = await ask({ kind: 'moments', action: 'read', layer });
      const rows = cut(hiddenDim, new Array<number>(worldSize).fill(1), 1);
      return joinMoments(
        replies.map(({ payload }) => payload),
        rows,
        hiddenDim,
      );
    },
  };
}
