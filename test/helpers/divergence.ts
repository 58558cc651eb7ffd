/** How far one row of logits is from another as a distribution. */

/** KL(expected || actual) of each row, in nats. @param actual, expected [rows, vocab] */
export function divergences(actual: Float32Array, expected: Float32Array, vocab: number): number[] {
  return Array.from({ length: expected.length / vocab }, (_, row) => {
    const part = (logits: Float32Array): Float32Array => logits.subarray(row * vocab, (row + 1) * vocab);
    return klDivergence(part(expected), part(actual));
  });
}

/** Kullback-Leibler divergence of softmax(q) from softmax(p), in nats. */
export function klDivergence(p: Float32Array, q: Float32Array): number {
  const logP = logSoftmax(p);
  const logQ = logSoftmax(q);
  return logP.reduce((sum, lp, i) => sum + Math.exp(lp) * (lp - logQ[i]!), 0);
}

export function logSumExp(values: Float32Array): number {
  const max = values.reduce((largest, value) => Math.max(largest, value), -Infinity);
  return max + Math.log(values.reduce((sum, value) => sum + Math.exp(value - max), 0));
}

function logSoftmax(values: Float32Array): Float64Array {
  const total = logSumExp(values);
  return Float64Array.from(values, (value) => value - total);
}
