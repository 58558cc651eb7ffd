/** How far one row of logits is from another as a distribution. */

/** KL(expected || actual) of each row, in nats. @param actual, expected [rows, vocab] */
export function divergences(actual: Float32Array, expected: Float32Array, vocab: number): number[] {
  return Array.from({ length: expected.length / vocab }, (_, row) => {
    const p = logProbabilities(expected.subarray(row * vocab, (row + 1) * vocab));
    const q = logProbabilities(actual.subarray(row * vocab, (row + 1) * vocab));
    return p.reduce((sum, value, i) => sum + Math.exp(value) * (value - q[i]!), 0);
  });
}

function logProbabilities(logits: Float32Array): number[] {
  const values = [...logits];
  const largest = Math.max(...values);
  const total = Math.log(values.reduce((sum, value) => sum + Math.exp(value - largest), 0)) + largest;
  return values.map((value) => value - total);
}
