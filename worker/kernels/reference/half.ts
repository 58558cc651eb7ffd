/**
 * Half precision in plain JavaScript: f16 and bf16 bits to numbers, numbers to the nearest f16.
 * Used when weights are uploaded and when cache rows are written; q formats are not decoded here.
 */

/** Adding and subtracting this rounds a double in [0, 2^52) to an integer, ties to even. */
const ROUND = 2 ** 52;
const exponentView = new Float32Array(1);
const exponentBits = new Uint32Array(exponentView.buffer);

export function decodeHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction === 0 ? sign * Infinity : NaN;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

export function decodeBrainFloat(bits: number): number {
  exponentBits[0] = bits << 16;
  return exponentView[0]!;
}

/** The f16 value nearest to a float32 value, ties to even; beyond 65504 plus half a step: infinity. */
export function roundToHalf(value: number): number {
  exponentView[0] = value;
  const exponent = ((exponentBits[0]! >> 23) & 0xff) - 127;
  if (exponent > 15) return Number.isFinite(value) ? Math.sign(value) * Infinity : value;
  const step = 2 ** (Math.max(exponent, -14) - 10); // 10 fraction bits; below 2^-14 the step no longer shrinks
  const rounded = (Math.abs(value) / step + ROUND - ROUND) * step;
  const magnitude = rounded > 65504 ? Infinity : rounded;
  return value < 0 || Object.is(value, -0) ? -magnitude : magnitude;
}
