/**
 * Rotary frequencies: from a base and a scaling rule to the angle per position of each rotated pair. Pure arithmetic in
 * float64; the kernels round to float32. Rules: none, linear, llama3, yarn (arXiv 2309.00071), and a table of divisors
 * as GGUF stores it. Rules whose angles depend on the sequence's length (dynamic, longrope) are refused by the families.
 */

export type RopeScaling =
  | { readonly kind: 'none' }
  | { readonly kind: 'linear'; readonly factor: number }
  | {
      readonly kind: 'llama3';
      readonly factor: number;
      readonly lowFrequencyFactor: number;
      readonly highFrequencyFactor: number;
      readonly originalContext: number;
    }
  | {
      readonly kind: 'yarn';
      readonly factor: number;
      readonly originalContext: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      /** Multiplies cos and sin. */
      readonly attentionFactor: number;
      /** Round the ends of the ramp to whole pairs, outwards. */
      readonly truncate: boolean;
    }
  /** Divides frequency i by divisors[i]. [dim / 2] */
  | { readonly kind: 'divisors'; readonly divisors: readonly number[] };

export interface RopeTable {
  /** [dim / 2] */
  readonly frequencies: readonly number[];
  readonly attentionFactor: number;
}

/** @param theta the base, 10000 in most models  @param dim width of the rotated part, even */
export function ropeTable(theta: number, dim: number, scaling: RopeScaling): RopeTable {
  const plain = Array.from({ length: dim / 2 }, (_, i) => theta ** ((-2 * i) / dim));
  switch (scaling.kind) {
    case 'none':
      return { frequencies: plain, attentionFactor: 1 };
    case 'linear':
      return { frequencies: plain.map((frequency) => frequency / scaling.factor), attentionFactor: 1 };
    case 'llama3':
      return { frequencies: plain.map((frequency) => llama3Frequency(frequency, scaling)), attentionFactor: 1 };
    case 'yarn':
      return { frequencies: yarnFrequencies(plain, theta, dim, scaling), attentionFactor: scaling.attentionFactor };
    case 'divisors':
      return { frequencies: plain.map((frequency, i) => frequency / (scaling.divisors[i] ?? 1)), attentionFactor: 1 };
  }
}

/** yarn's m(a) = 0.1 a ln(factor) + 1, and 1 where nothing is stretched. */
export function yarnMscale(factor: number, a: number): number {
  return factor <= 1 ? 1 : 0.1 * a * Math.log(factor) + 1;
}

/** Short wavelengths stay, long ones are stretched by `factor`, those in between are mixed. */
function llama3Frequency(frequency: number, scaling: Extract<RopeScaling, { kind: 'llama3' }>): number {
  const { factor, lowFrequencyFactor, highFrequencyFactor, originalContext } = scaling;
  const wavelength = (2 * Math.PI) / frequency;
  if (wavelength < originalContext / highFrequencyFactor) return frequency;
  if (wavelength > originalContext / lowFrequencyFactor) return frequency / factor;
  const keep = (originalContext / wavelength - lowFrequencyFactor) / (highFrequencyFactor - lowFrequencyFactor);
  return (1 - keep) * (frequency / factor) + keep * frequency;
}

/** Pairs that turn often within the original context stay, those that turn rarely are stretched, with a ramp between. */
function yarnFrequencies(
  plain: readonly number[],
  theta: number,
  dim: number,
  scaling: Extract<RopeScaling, { kind: 'yarn' }>,
): number[] {
  const { factor, originalContext, betaFast, betaSlow, truncate } = scaling;
  // The (fractional) pair that makes `turns` turns within the original context.
  const pairOf = (turns: number): number =>
    (dim * Math.log(originalContext / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const low = Math.max(0, truncate ? Math.floor(pairOf(betaFast)) : pairOf(betaFast));
  const end = Math.min(dim - 1, truncate ? Math.ceil(pairOf(betaSlow)) : pairOf(betaSlow));
  // Equal ends would divide by zero; the authors' code moves one by this much.
  const high = end === low ? end + 0.001 : end;
  return plain.map((frequency, i) => {
    const stretch = Math.min(1, Math.max(0, (i - low) / (high - low)));
    return frequency * (1 - stretch) + (frequency / factor) * stretch;
  });
}
