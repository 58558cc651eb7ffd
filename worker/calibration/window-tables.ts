/** Constant tables of a calibration window. */
import type { ExactTokens, Range } from '../../config/shard-plan.ts';

/** @param sliding positions that query m sees, its own included; 0: all before it */
export function isSeen(m: number, t: number, sliding: number): boolean {
  return t <= m && (sliding === 0 || t > m - sliding);
}

/** Whether query m attends to key t as to one of the first or last tokens. */
export function isNear(m: number, t: number, { sinks, window }: ExactTokens): boolean {
  return t <= m && (t < sinks || t > m - window);
}

/** 1 where key t is not near to query m, for queries of a range and keys before its end. [m, t] */
export function farPairs({ start, end }: Range, near: ExactTokens): Float32Array {
  const far = new Float32Array((end - start) * end);
  for (let m = start; m < end; m++)
    for (let t = 0; t <= m; t++) if (!isNear(m, t, near)) far[(m - start) * end + t] = 1;
  return far;
}

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

/** Rows cos(theta_l t), then rows sin(theta_l t). [2 * frequencies, T] */
export function angleRows(frequencies: readonly number[], tokens: number): Float32Array {
  const half = frequencies.length;
  const rows = new Float32Array(2 * half * tokens);
  frequencies.forEach((frequency, l) => {
    for (let t = 0; t < tokens; t++) {
      rows[l * tokens + t] = Math.cos(frequency * t);
      rows[(half + l) * tokens + t] = Math.sin(frequency * t);
    }
  });
  return rows;
}

/**
 * cos(theta (m - t)) = cos m cos t + sin m sin t, sin(theta (m - t)) = sin m cos t - cos m sin t: what cos t and sin t are
 * multiplied by. [T (m), 2 * frequencies] each
 */
export function rotations(
  frequencies: readonly number[],
  tokens: number,
): { forReal: Float32Array; forImaginary: Float32Array } {
  const half = frequencies.length;
  const forReal = new Float32Array(tokens * 2 * half);
  const forImaginary = new Float32Array(tokens * 2 * half);
  for (let m = 0; m < tokens; m++) {
    frequencies.forEach((frequency, l) => {
      const [cos, sin] = [Math.cos(frequency * m), Math.sin(frequency * m)];
      forReal.set([cos], m * 2 * half + l);
      forReal.set([sin], m * 2 * half + half + l);
      forImaginary.set([sin], m * 2 * half + l);
      forImaginary.set([-cos], m * 2 * half + half + l);
    });
  }
  return { forReal, forImaginary };
}
