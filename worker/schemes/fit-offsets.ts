/** The constants that make old tokens weigh as much beside exactly scored ones as under exact attention. Read next: fit-session.ts. */
import type { FitSizes } from './fit-formulas.ts';

/**
 * How much less the old tokens of a query weigh in each group's attention than in exact attention, as a difference of
 * log odds, weighted by p (1 - p), p: their exact probability.
 * @param shares of old tokens, exact and of each group [heads, T]  @param sums [groups, heads, 2]: weights, weighted; updated
 */
export function addLogRatios(
  { exact, groups }: { readonly exact: Float32Array; readonly groups: readonly Float32Array[] },
  { numHeads: H, tokens: T, prompt }: FitSizes,
  sums: Float32Array,
): void {
  groups.forEach((share, group) => {
    for (let h = 0; h < H; h++)
      for (let t = prompt; t < T; t++) {
        const p = exact[h * T + t] ?? 0;
        const q = share[h * T + t] ?? 0;
        if (p < 1e-4 || q < 1e-6 || p > 1 - 1e-4 || q > 1 - 1e-6) continue;
        const weight = p * (1 - p);
        const place = 2 * (group * H + h);
        sums[place] = (sums[place] ?? 0) + weight;
        sums[place + 1] = (sums[place + 1] ?? 0) + weight * (Math.log(p / (1 - p)) - Math.log(q / (1 - q)));
      }
  });
}
