/** Seeded numbers for tests: the same on every machine, different for every element. */

/** Uniform in [0, 1): a 32-bit counter hashed per call. */
export function seededRandom(seed: number): () => number {
  let counter = Math.imul(seed + 1, 0x9e3779b9);
  return () => {
    counter = (counter + 0x6d2b79f5) | 0;
    let hash = Math.imul(counter ^ (counter >>> 15), counter | 1);
    hash ^= hash + Math.imul(hash ^ (hash >>> 7), hash | 61);
    return ((hash ^ (hash >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** `length` float32 values in [low, high). */
export function randomArray(seed: number, length: number, low = -1, high = 1): Float32Array {
  const next = seededRandom(seed);
  return Float32Array.from({ length }, () => low + (high - low) * next());
}

/** Values that f16 holds exactly (2^-6 to 2, both signs), with their bits, so that tests need no encoder. */
export function randomHalves(seed: number, length: number): { bits: Uint16Array; values: Float32Array } {
  const next = seededRandom(seed);
  const bits = new Uint16Array(length);
  const values = new Float32Array(length);
  for (let i = 0; i < length; i++) {
    const negative = next() < 0.5;
    const exponent = 9 + Math.floor(next() * 7);
    const fraction = Math.floor(next() * 1024);
    bits[i] = (negative ? 0x8000 : 0) | (exponent << 10) | fraction;
    values[i] = (negative ? -1 : 1) * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return { bits, values };
}

/** Values that bf16 holds exactly, with their bits. */
export function randomBrainFloats(seed: number, length: number): { bits: Uint16Array; values: Float32Array } {
  const values = randomArray(seed, length);
  const words = new Uint32Array(values.buffer);
  const bits = new Uint16Array(length);
  for (let i = 0; i < length; i++) {
    words[i]! &= 0xffff0000;
    bits[i] = words[i]! >>> 16;
  }
  return { bits, values };
}
