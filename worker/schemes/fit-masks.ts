/** Which pairs of tokens of a window a fit scores, exactly or by a shard. Read next: fit-programs.ts. */
import type { FitSizes } from './fit-formulas.ts';

/** Each [T queries, T keys]; what they hold: FitTensors of fit-formulas.ts. */
export type FitMasks = Readonly<Record<'causal' | 'exactly' | 'shard' | 'old', Float32Array>>;

/** The prompt sees nothing but exact scores; behind it, the first and last tokens are scored exactly. */
export function masksOf({
  tokens: T,
  prompt,
  exactTokens,
}: Pick<FitSizes, 'tokens' | 'prompt' | 'exactTokens'>): FitMasks {
  const empty = (): Float32Array => new Float32Array(T * T);
  const masks = { causal: empty(), exactly: empty(), shard: empty(), old: empty() };
  for (let t = 0; t < T; t++)
    for (let other = 0; other < T; other++) {
      const pair = t * T + other;
      const isExact = t < prompt || other < exactTokens.sinks || other > t - exactTokens.window;
      masks.causal[pair] = other <= t ? 0 : -Infinity;
      masks.exactly[pair] = isExact ? 1 : 0;
      masks.shard[pair] = isExact ? 0 : 1;
      masks.old[pair] = other <= t && !isExact ? 1 : 0;
    }
  return masks;
}
