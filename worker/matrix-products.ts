/** Products of small matrices while loading, row-major: rotations of the latent projections. */

/** a [m, k] times b^T, b [n, k] -> [m, n] */
export function timesTransposed(a: Float32Array, b: Float32Array, m: number, k: number, n: number): Float32Array {
  const out = new Float32Array(m * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let l = 0; l < k; l++) sum += (a[i * k + l] ?? 0) * (b[j * k + l] ?? 0);
      out[i * n + j] = sum;
    }
  return out;
}

/** a [m, k] times the first k rows of b [.., n] -> [m, n] */
export function times2d(a: Float32Array, b: Float32Array, m: number, k: number, n: number): Float32Array {
  const out = new Float64Array(m * n);
  for (let i = 0; i < m; i++)
    for (let l = 0; l < k; l++) {
      const factor = a[i * k + l] ?? 0;
      for (let j = 0; j < n; j++) out[i * n + j] = (out[i * n + j] ?? 0) + factor * (b[l * n + j] ?? 0);
    }
  return Float32Array.from(out);
}
