/**
 * The layer-by-layer refit (docs/conversion.md, step 7). Layers are converted in order, each on the stream that
 * the converted layers before it produce; then two ridge regressions bring its output back to the original's:
 *     W_UV, per head: features f = [A_h c; 1], target the original head's output o_h, prior the PCA's decoder;
 *     W_O: features g = [all refitted heads; 1], target W_O o, prior W_O.
 * Both: W = (T + l W0 D) (F + l D)^-1 with F = sum f f^T, T = sum target f^T, D = diag F (ridge.ts). The accumulated error
 * of the stream is no part of the targets: fitting it fits the calibration text. Pure: sums come from the ranks
 * (collective/refit-maps.ts). Read next: coordinator/convert/convert-refitted.ts.
 */
import { invariant } from '../../config/errors.ts';
import { type HeadLayout, kvHeadOf } from './attention-maps.ts';
import { added, colsOf, type Dense, denseFrom, joinCols, multiply, rowsOf, stackRows } from './dense.ts';
import { ridge } from './ridge.ts';

/** Strengths l of the two regressions, relative to the energy of each feature. */
export const refitRidge = { values: 0.03, output: 0.1 } as const;

export interface ValueEquations {
  readonly features: Float64Array; // [H, r + 1, r + 1]
  readonly targets: Float64Array; // [H, d, r + 1]
  readonly energy: Float64Array; // [H]
}

export interface RefittedValues {
  /** W_UV of every head. [H d, r] */
  readonly valueUp: Dense;
  /** What every head's output has on top. [H d, 1] */
  readonly bias: Dense;
  /** Share of the heads' output energy that is missed, before and after. */
  readonly missedBefore: number;
  readonly missedAfter: number;
}

/**
 * @param valueUp W_UV of every head by PCA [H d, r]  @param mean the value that is on top of it, per KV head [G d, 1]
 */
export function refitValues(
  equations: ValueEquations,
  valueUp: Dense,
  mean: Dense,
  layout: HeadLayout,
  strength: number = refitRidge.values,
): RefittedValues {
  const { numHeads, headDim } = layout;
  const width = valueUp.cols + 1;
  const fitted: Dense[] = [];
  let [before, after, energy] = [0, 0, 0];
  for (let head = 0; head < numHeads; head++) {
    const features = part(equations.features, head, width, width);
    const targets = part(equations.targets, head, headDim, width);
    const start = kvHeadOf(head, layout) * headDim;
    const prior = joinCols([
      rowsOf(valueUp, head * headDim, (head + 1) * headDim),
      rowsOf(mean, start, start + headDim),
    ]);
    const { map, saved } = ridge(features, targets, prior, { strength, energy: 'own' });
    fitted.push(map);
    before += missed(prior, features, targets);
    after += saved;
    energy += equations.energy[head] ?? 0;
  }
  const all = stackRows(fitted);
  const share = (saved: number): number => (energy > 0 ? Math.max(0, (energy + saved) / energy) : 0);
  return {
    valueUp: colsOf(all, 0, width - 1),
    bias: colsOf(all, width - 1, width),
    missedBefore: share(before),
    missedAfter: share(after),
  };
}

export interface OutputEquations {
  readonly features: Float64Array; // [H d + 1, H d + 1]
  readonly targets: Float64Array; // [D, H d + 1]
  /** Of the targets. */
  readonly energy: Float64Array; // [1]
}

export interface RefittedOutput {
  /** W_O and bias for heads without theirs. [D, H d + 1] */
  readonly output: Dense;
  /** Share of the attention output's energy that is missed: |W_O o - W g|^2 over |W_O o|^2. */
  readonly missed: number;
}

/** @param output the original W_O and bias [D, H d + 1]  @param bias of the refitted heads [H d, 1], which g lacks */
export function refitOutput(
  equations: OutputEquations,
  output: Dense,
  bias: Dense,
  strength: number = refitRidge.output,
): RefittedOutput {
  const width = output.cols;
  const features = denseFrom(width, width, equations.features);
  const targets = denseFrom(output.rows, width, equations.targets);
  const { map, saved } = ridge(features, targets, withHeadBias(output, bias), {
    strength,
    energy: 'own',
  });
  const energy = equations.energy[0] ?? 0;
  return { output: map, missed: energy > 0 ? Math.max(0, (energy + saved) / energy) : 0 };
}

/** What the heads' biases contribute becomes a bias of the output. @param output [D, H d + 1]  @param bias [H d, 1] */
export function withHeadBias(output: Dense, bias: Dense): Dense {
  const weight = colsOf(output, 0, output.cols - 1);
  const own = colsOf(output, output.cols - 1, output.cols);
  return joinCols([weight, added(own, multiply(weight, bias), 1)]);
}

/** sum |o - W f|^2 less the energy of o: tr(W F W^T) - 2 tr(W T^T). */
function missed(map: Dense, features: Dense, targets: Dense): number {
  const through = added(multiply(map, features), targets, -2);
  return map.data.reduce((sum, value, i) => sum + value * (through.data[i] ?? 0), 0);
}

function part(values: Float64Array, head: number, rows: number, cols: number): Dense {
  const own = values.subarray(head * rows * cols, (head + 1) * rows * cols);
  invariant(own.length === rows * cols, `normal equations of head ${head}: ${own.length} numbers`);
  return { rows, cols, data: own };
}
