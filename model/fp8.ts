/** 8-bit floats E4M3 as DeepSeek stores them: sign, 4 exponent bits (bias 7), 3 mantissa bits; no infinity, largest 448. */

const values = Float32Array.from({ length: 256 }, (_, code) => decode(code)); // [256]

export function floatOfFp8(code: number): number {
  return values[code] ?? 0;
}

function decode(code: number): number {
  const sign = code < 128 ? 1 : -1;
  const exponent = (code >> 3) & 15;
  const mantissa = code & 7;
  if (exponent === 15 && mantissa === 7) return NaN;
  if (exponent === 0) return sign * mantissa * 2 ** -9;
  return sign * (1 + mantissa / 8) * 2 ** (exponent - 7);
}
