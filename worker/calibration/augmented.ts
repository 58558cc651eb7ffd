/**
 * Moments of inputs that end in the constant 1, from those of the inputs: the programs leave the 1 out, because ggml's
 * fast product takes no odd number of rows.
 */

/**
 * @param moment sum of weight x x^T [n, n]  @param sums of weight x [n]  @param weight its sum
 * @param into sum of weight [x; 1] [x; 1]^T [n + 1, n + 1], overwritten
 */
export function withOnes(moment: Float32Array, sums: Float32Array, weight: number, into: Float64Array): void {
  const n = sums.length;
  withLastColumn(moment, sums, into);
  into.set(sums, n * (n + 1));
  into[n * (n + 1) + n] = weight;
}

/** @param moment sum of y x^T [rows, n]  @param sums of y [rows]  @param into sum of y [x; 1]^T [rows, n + 1], overwritten */
export function withLastColumn(moment: Float32Array, sums: Float32Array, into: Float64Array): void {
  const n = moment.length / sums.length;
  sums.forEach((sum, i) => {
    into.set(moment.subarray(i * n, (i + 1) * n), i * (n + 1));
    into[i * (n + 1) + n] = sum;
  });
}
