/**
 * What crosses between coordinator and ranks in a layer-by-layer refit, as one array per message: which fields, in which
 * order, how long. To the ranks float32: the maps of one converted layer. Back, float64 sums over tokens of windows: the
 * normal equations. Read next: worker/calibration/refit-programs.ts (computed), model/transmla/refit.ts (solved).
 */
import { invariant } from '../config/errors.ts';

export interface RefitShape {
  /** D */
  readonly hiddenDim: number;
  /** H */
  readonly numHeads: number;
  /** G */
  readonly numKvHeads: number;
  /** d; converted heads have as many nope and as many value numbers */
  readonly headDim: number;
  /** p */
  readonly ropeDim: number;
  /** r */
  readonly latentDim: number;
}

/** Lengths by field, in the order of the payload. */
type Lengths<Field extends string> = readonly (readonly [Field, number])[];

/**
 * query [H (d + p), D], queryBias; latentDown [r + p, D], latentDownBias; keyUp [H, d, r]: W_UK; frequencies [p / 2];
 * meanValue [G d]: what the output's bias has of every value; farSlope [H d]: what a mean key adds to all scores by latents.
 */
export function layerMapFields({ hiddenDim, numHeads, numKvHeads, headDim, ropeDim, latentDim }: RefitShape) {
  const queryRows = numHeads * (headDim + ropeDim);
  const downRows = latentDim + ropeDim;
  return [
    ['query', queryRows * hiddenDim],
    ['queryBias', queryRows],
    ['latentDown', downRows * hiddenDim],
    ['latentDownBias', downRows],
    ['keyUp', numHeads * headDim * latentDim],
    ['frequencies', ropeDim / 2],
    ['meanValue', numKvHeads * headDim],
    ['farSlope', numHeads * headDim],
  ] as const;
}

/** valueUp [H, d, r]: W_UV. */
export function valueMapFields({ numHeads, headDim, latentDim }: RefitShape) {
  return [['valueUp', numHeads * headDim * latentDim]] as const;
}

/** output [D, H d], outputBias [D]: W_O. */
export function outputMapFields({ hiddenDim, numHeads, headDim }: RefitShape) {
  return [
    ['output', hiddenDim * numHeads * headDim],
    ['outputBias', hiddenDim],
  ] as const;
}

/**
 * Normal equations of W_UV, features f = [A_h c; 1], targets o_h: features [H, r + 1, r + 1]: sums of f f^T; targets
 * [H, d, r + 1]: sums of o f^T; energy [H]: sums of |o|^2.
 */
export function valueEquationFields({ numHeads, headDim, latentDim }: RefitShape) {
  const width = latentDim + 1;
  return [
    ['features', numHeads * width * width],
    ['targets', numHeads * headDim * width],
    ['energy', numHeads],
  ] as const;
}

/**
 * Normal equations of W_O, features g = [all heads' refitted outputs; 1], targets y = the layer's original attention output:
 * features [H d + 1, H d + 1]: sums of g g^T; targets [D, H d + 1]: sums of y g^T; energy [1]: sum of |y|^2.
 */
export function outputEquationFields({ hiddenDim, numHeads, headDim }: RefitShape) {
  const width = numHeads * headDim + 1;
  return [
    ['features', width * width],
    ['targets', hiddenDim * width],
    ['energy', 1],
  ] as const;
}

export function fieldsLength(fields: Lengths<string>): number {
  return fields.reduce((sum, [, length]) => sum + length, 0);
}

/** Views into a payload, by field. */
export function splitFields<Field extends string, Values extends Float32Array | Float64Array>(
  payload: Values,
  fields: Lengths<Field>,
): Record<Field, Values> {
  invariant(payload.length === fieldsLength(fields), `${payload.length} numbers, expected ${fieldsLength(fields)}`);
  let end = 0;
  const views = fields.map(([field, length]) => {
    const start = end;
    end += length;
    return [field, payload.subarray(start, end)];
  });
  // Keys are the fields, and subarray of a typed array has the type of the array.
  return Object.fromEntries(views) as Record<Field, Values>;
}
