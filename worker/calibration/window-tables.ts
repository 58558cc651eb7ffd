/** Constant tables of a calibration window. */

/**
 * 0 where query m may see key t, -Infinity elsewhere. [T (m), T (t)]
 * @param sliding positions that a query sees, its own included; 0: all before it
 */
export function wholeMask(tokens: number, sliding = 0): Float32Array {
  const mask = new Float32Array(tokens * tokens);
  for (let m = 0; m < tokens; m++) {
    mask.fill(-Infinity, m * tokens + m + 1, (m + 1) * tokens);
    if (sliding > 0) mask.fill(-Infinity, m * tokens, m * tokens + Math.max(0, m + 1 - sliding));
  }
  return mask;
}

/** Rows cos(theta_l t), then rows sin(theta_l t), then a row of ones. [2 * frequencies + 1, T] */
export function angleRows(frequencies: readonly number[], tokens: number): Float32Array {
  const half = frequencies.length;
  const rows = new Float32Array((2 * half + 1) * tokens).fill(1);
  frequencies.forEach((frequency, l) => {
    for (let t = 0; t < tokens; t++) {
      rows[l * tokens + t] = Math.cos(frequency * t);
      rows[(half + l) * tokens + t] = Math.sin(frequency * t);
    }
  });
  return rows;
}
