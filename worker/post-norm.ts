/**
 * The norm that some models put on a sublayer's output. It needs the whole output, so it runs on the host after the sum
 * over ranks, in float64 and in one order: every rank gets the same bits.
 */

/** RMSNorm of every row, in place. @param x [tokens, hidden]  @param gain [hidden] */
export function normRows(x: Float32Array, gain: Float32Array, eps: number): void {
  const hidden = gain.length;
  for (let start = 0; start < x.length; start += hidden) {
    let squares = 0;
    for (let i = start; i < start + hidden; i++) squares += (x[i] ?? 0) ** 2;
    const factor = 1 / Math.sqrt(squares / hidden + eps);
    for (let i = 0; i < hidden; i++) x[start + i] = (x[start + i] ?? 0) * factor * (gain[i] ?? 0);
  }
}
