/**
 * Which experts a token goes to, and with what weights: from router logits on the host, in one plain function for every
 * family and backend. Every rank computes it from the same replicated logits, so that all agree without a message.
 */
import type { ExpertsConfig, RoutingConfig } from '../config/model-config.ts';
import { size, type Range } from '../config/shard-plan.ts';

export interface Routes {
  /** Experts that this rank computes per token: the most that any token of the step chose among those it holds. */
  readonly slots: number;
  /** [tokens, slots], counted from the first expert held. A token with fewer fills up with expert 0 and share 0. */
  readonly ids: Int32Array;
  readonly shares: Float32Array; // [tokens, slots]
}

/**
 * @param logits [tokens, experts]
 * @param bias [experts], added to the scores for the choice only
 * @param held the experts of this rank; choices of others are left to other ranks
 */
export function route(
  logits: Float32Array,
  bias: Float32Array | undefined,
  { count, perToken, routing }: ExpertsConfig,
  held: Range,
): Routes {
  const chosen: { expert: number; share: number }[][] = [];
  for (let start = 0; start < logits.length; start += count) {
    const scores = scoresOf(logits.subarray(start, start + count), routing.scoring);
    chosen.push(
      sharesOf(scores, choose(scores, bias, perToken, routing.groups), routing).filter(
        ({ expert }) => expert >= held.start && expert < held.end,
      ),
    );
  }
  const slots = size(held) === count ? perToken : Math.max(0, ...chosen.map((choices) => choices.length));
  const ids = new Int32Array(chosen.length * slots);
  const shares = new Float32Array(chosen.length * slots);
  chosen.forEach((choices, t) => {
    choices.forEach(({ expert, share }, j) => {
      ids[t * slots + j] = expert - held.start;
      shares[t * slots + j] = share;
    });
  });
  return { slots, ids, shares };
}

function scoresOf(logits: Float32Array, scoring: RoutingConfig['scoring']): Float64Array {
  const scores = Float64Array.from(logits);
  if (scoring === 'sigmoid') return scores.map((logit) => 1 / (1 + Math.exp(-logit)));
  const max = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = scores.map((logit) => Math.exp(logit - max));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** The best `perToken` experts of the best groups, best first; the lower number wins a tie. */
function choose(
  scores: Float64Array,
  bias: Float32Array | undefined,
  perToken: number,
  groups: RoutingConfig['groups'],
): number[] {
  const ranked = scores.map((score, expert) => score + (bias?.[expert] ?? 0));
  const perGroup = scores.length / groups.count;
  const worth = Array.from({ length: groups.count }, (_, group) =>
    ranked
      .slice(group * perGroup, (group + 1) * perGroup)
      .sort((a, b) => b - a)
      .slice(0, groups.best)
      .reduce((a, b) => a + b, 0),
  );
  const kept = new Set(best(worth, groups.keep));
  const candidates = Array.from(ranked, (score, expert) =>
    kept.has(Math.floor(expert / perGroup)) ? score : -Infinity,
  );
  return best(candidates, perToken);
}

function sharesOf(
  scores: Float64Array,
  experts: readonly number[],
  routing: RoutingConfig,
): { expert: number; share: number }[] {
  const sum = experts.reduce((total, expert) => total + (scores[expert] ?? 0), 0);
  // The reference adds 1e-20 so that no sum is 0.
  const factor = routing.scale / (routing.normalize ? sum + 1e-20 : 1);
  return experts.map((expert) => ({ expert, share: (scores[expert] ?? 0) * factor }));
}

/** Indices of the `count` largest values, largest first. */
function best(values: readonly number[], count: number): number[] {
  return values
    .map((value, index) => ({ value, index }))
    .sort((a, b) => b.value - a.value || a.index - b.index)
    .slice(0, count)
    .map(({ index }) => index);
}
