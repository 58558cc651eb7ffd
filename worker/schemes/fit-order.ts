/**
 * In what order the columns of a latent lose least when they are cut, from the queries of a calibration text: what an error
 * of a score or of a value costs to first order, summed over old tokens. A score error e at probability p moves the output
 * by p (v - o) e, a value error by p. Read next: model/tpla/weighted-order.ts.
 */
import { type Dense, added, denseFrom, multiplyTransposed, zeros } from '../../model/transmla/dense.ts';
import { weightedOrder } from '../../model/tpla/weighted-order.ts';
import type { FitSizes } from './fit-formulas.ts';
import { addTo } from './fit-solve.ts';

export class OrderMoments {
  /** Products of queries [heads, r, r], then costs [heads]. */
  readonly sums: Float32Array;
  private readonly sizes: FitSizes;

  constructor(sizes: FitSizes) {
    this.sizes = sizes;
    const { latentDim } = sizes.config;
    this.sums = new Float32Array(sizes.numHeads * (latentDim * latentDim + 1));
  }

  /** Sums over the queries of one window. */
  add({ products, costs }: { products: Float32Array; costs: Float32Array }): void {
    addTo(this.sums, products, 0);
    addTo(this.sums, costs, products.length);
  }

  /** @param outputOf W_O W_UV of a head, transposed [r, hidden]  @returns U [r, r] */
  solve(covariance: Dense, outputOf: (head: number) => Float32Array, hidden: number): Float32Array {
    const { numHeads, config, overlap } = this.sizes;
    const { latentDim: r, scoreScale } = config;
    let scores = zeros(r, r);
    let values = zeros(r, r);
    for (let head = 0; head < numHeads; head++) {
      const map = denseFrom(r, hidden, outputOf(head));
      const gram = multiplyTransposed(map, map); // [r, r]
      const cost = this.sums[numHeads * r * r + head] ?? 0;
      // By how much the outputs of two old tokens differ, squared, on average.
      let spread = 0;
      for (let i = 0; i < r * r; i++) spread += (gram.data[i] ?? 0) * (covariance.data[i] ?? 0);
      const queries = denseFrom(r, r, this.sums.subarray(head * r * r, (head + 1) * r * r));
      scores = added(scores, queries, spread * scoreScale * scoreScale);
      values = added(values, gram, cost);
    }
    return Float32Array.from(weightedOrder({ covariance, scores, values }, overlap).data);
  }
}

/**
 * Each query behind the prompt times the root of what an error of its scores of old tokens costs; others times 0.
 * @param queries [heads, T, r], changed in place  @param squares sums of squared probabilities of old tokens [heads, T]
 * @returns sums of the costs [heads]
 */
export function weighQueries(
  queries: Float32Array,
  squares: Float32Array,
  { numHeads, tokens, prompt, config }: Pick<FitSizes, 'numHeads' | 'tokens' | 'prompt' | 'config'>,
): Float32Array {
  const { latentDim: r } = config;
  const costs = new Float32Array(numHeads);
  for (let row = 0; row < numHeads * tokens; row++) {
    const cost = row % tokens < prompt ? 0 : (squares[row] ?? 0);
    const head = Math.floor(row / tokens);
    costs[head] = (costs[head] ?? 0) + cost;
    const root = Math.sqrt(cost);
    for (let i = row * r; i < (row + 1) * r; i++) queries[i] = (queries[i] ?? 0) * root;
  }
  return costs;
}
