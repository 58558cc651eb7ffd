/**
 * How far the predictions of one run are from those of another: Kullback-Leibler divergence per position, whether both
 * name the same token, and sums of them. Natural logarithms; pure arithmetic.
 */

export interface Divergence {
  /** KL(reference || tested): sum over the vocabulary of p (ln p - ln q). [rows] */
  readonly kl: Float64Array;
  /** Whether the most likely token is the same. [rows] */
  readonly agrees: readonly boolean[];
}

/** @param reference, tested logits [rows, vocabSize] */
export function divergenceOf(reference: Float32Array, tested: Float32Array, vocabSize: number): Divergence {
  const rows = reference.length / vocabSize;
  const kl = new Float64Array(rows);
  const agrees: boolean[] = [];
  for (let row = 0; row < rows; row++) {
    const p = reference.subarray(row * vocabSize, (row + 1) * vocabSize);
    const q = tested.subarray(row * vocabSize, (row + 1) * vocabSize);
    const [top, topTested] = [indexOfLargest(p), indexOfLargest(q)];
    agrees.push(top === topTested);
    const [normP, normQ] = [logSumExp(p, p[top] ?? 0), logSumExp(q, q[topTested] ?? 0)];
    let sum = 0;
    for (let v = 0; v < vocabSize; v++) {
      const logP = (p[v] ?? 0) - normP;
      sum += Math.exp(logP) * (logP - ((q[v] ?? 0) - normQ));
    }
    // Rounding can leave a divergence of equal predictions just below zero.
    kl[row] = Math.max(0, sum);
  }
  return { kl, agrees };
}

/** What is printed of some positions. */
export interface DivergenceSummary {
  readonly positions: number;
  readonly mean: number;
  /** 99 of 100 positions are not above it. */
  readonly p99: number;
  readonly top1Agreement: number;
}

export function summarise(kl: readonly number[], agrees: readonly boolean[]): DivergenceSummary {
  const sorted = kl.toSorted((a, b) => a - b);
  return {
    positions: kl.length,
    mean: kl.reduce((sum, value) => sum + value, 0) / kl.length,
    p99: sorted[Math.ceil(0.99 * kl.length) - 1] ?? 0,
    top1Agreement: agrees.filter(Boolean).length / agrees.length,
  };
}

function indexOfLargest(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] ?? 0) > (values[best] ?? 0)) best = i;
  return best;
}

function logSumExp(values: Float32Array, largest: number): number {
  let sum = 0;
  for (const value of values) sum += Math.exp(value - largest);
  return largest + Math.log(sum);
}
