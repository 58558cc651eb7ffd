/**
 * How far results may be from the float64 expectation, in one place, each with its reason. Loosening one needs a
 * sentence in the commit. Inputs of the tests are of order 1, so `absolute` is also relative to the inputs.
 */

/** |actual - expected| <= absolute + relative * |expected| */
export interface Tolerance {
  readonly absolute: number;
  readonly relative: number;
}

/** One entry per kind of arithmetic in the Kernels conformance suite. */
export interface KernelTolerances {
  /** add, multiply, scale, silu */
  readonly elementwise: Tolerance;
  /** softcap of 30 */
  readonly softcap: Tolerance;
  readonly gelu: Tolerance;
  readonly rmsNorm: Tolerance;
  readonly rope: Tolerance;
  readonly softmax: Tolerance;
  /** f32 weights; up to 576 products of order 1 */
  readonly matmul: Tolerance;
  readonly matmulF16: Tolerance;
  readonly matmulBf16: Tolerance;
  readonly attend: Tolerance;
  /** keys and values in f16 */
  readonly attendF16: Tolerance;
  /** the same, with values by column */
  readonly attendF16ByColumn: Tolerance;
}

/** Copies, gathers and views: no arithmetic, no error. */
export const EXACT: Tolerance = { absolute: 0, relative: 0 };

/** float64 sums leave only the rounding of the result to float32: half a unit in the last place, 6e-8. */
const ROUNDED_ONCE: Tolerance = { absolute: 1e-12, relative: 6.1e-8 };

export const REFERENCE_TOLERANCES: KernelTolerances = {
  elementwise: ROUNDED_ONCE,
  softcap: ROUNDED_ONCE,
  gelu: ROUNDED_ONCE,
  // One test multiplies a norm by a gain: rounded twice.
  rmsNorm: { absolute: 1e-12, relative: 1.3e-7 },
  rope: ROUNDED_ONCE,
  softmax: ROUNDED_ONCE,
  matmul: ROUNDED_ONCE,
  matmulF16: ROUNDED_ONCE,
  matmulBf16: ROUNDED_ONCE,
  attend: ROUNDED_ONCE,
  attendF16: ROUNDED_ONCE,
  attendF16ByColumn: ROUNDED_ONCE,
};

/** A float32 sum of n products of order 1 loses about sqrt(n) * 6e-8 of its largest partial sum. */
const FLOAT32_SUM: Tolerance = { absolute: 2e-5, relative: 1e-6 };
/** A few float32 operations and one transcendental of about 2 units in the last place. */
const FLOAT32_FEW: Tolerance = { absolute: 1e-6, relative: 2e-6 };

export const GPUJS_TOLERANCES: KernelTolerances = {
  elementwise: FLOAT32_FEW,
  // Shaders build tanh from exp, which near zero loses a unit in the last place of 1, here times 30: 4e-6 measured.
  softcap: { absolute: 1e-5, relative: 2e-6 },
  gelu: FLOAT32_FEW,
  rmsNorm: FLOAT32_FEW,
  rope: FLOAT32_FEW,
  softmax: FLOAT32_FEW,
  matmul: FLOAT32_SUM,
  matmulF16: FLOAT32_SUM,
  matmulBf16: FLOAT32_SUM,
  attend: FLOAT32_SUM,
  attendF16: FLOAT32_SUM,
  attendF16ByColumn: FLOAT32_SUM,
};

export const GGML_TOLERANCES: KernelTolerances = {
  elementwise: FLOAT32_FEW,
  softcap: FLOAT32_FEW,
  gelu: FLOAT32_FEW,
  rmsNorm: FLOAT32_FEW,
  // The angle is a float32: at position 8192 it is off by up to 5e-4 rad.
  rope: { absolute: 2e-3, relative: 0 },
  softmax: FLOAT32_FEW,
  matmul: FLOAT32_SUM,
  // x is rounded to the weight's type first: 2^-11 (f16) or 2^-8 (bf16) of each of up to 576 products.
  matmulF16: { absolute: 5e-3, relative: 1e-3 },
  matmulBf16: { absolute: 4e-2, relative: 8e-3 },
  attend: FLOAT32_SUM,
  attendF16: FLOAT32_SUM,
  // Queries and shares are rounded to f16, as keys and values are: 2^-11 of each of 16 products of a score.
  attendF16ByColumn: { absolute: 2e-3, relative: 1e-3 },
};

/** Products with the same quantised weight in two layouts: the blocks of 32 to 256 columns are added in another order. */
export const REPACKED: Tolerance = { absolute: 1e-4, relative: 1e-5 };

/** Logits of the tiny checkpoints against transformers in float32: the float32 reference itself is 2.4e-5 off float64. */
export const GOLDEN_LOGITS: Tolerance = { absolute: 1e-4, relative: 0 };

/** SmolLM2's logits in float32 on the dequantised weights against transformers: its own variants differ by 1e-4. */
export const SMOLLM2_LOGITS: Tolerance = { absolute: 1e-3, relative: 0 };

/** Logits of a model converted at full size against the source's: the products are regrouped in float32. */
export const CONVERTED_EXACTLY: Tolerance = { absolute: 1e-3, relative: 0 };

/** KL, nats per token, of an exact scheme from one rank in float32: sums in another order, 1e-11 measured; the goal is 1e-5. */
export const EXACT_DIVERGENCE = 1e-8;

/**
 * Logits of stories260K (of order 10) whose sums over ranks were added in another order: rounding of float32 through 5
 * layers, and 8-bit activations that round the other way.
 */
export const SUM_ORDER: Tolerance = { absolute: 1e-3, relative: 0 };

/** The same whose deltas travelled as q8_0: half a 127th of the largest of 32 numbers, 10 times. */
export const CARRIED_IN_BLOCKS: Tolerance = { absolute: 0.5, relative: 0 };
