/**
 * What the recipe knows of one layer: statistics over calibration tokens and pairs of tokens, each weighted by what an
 * error there does to the residual stream. Ranks compute the sums (worker/calibration/statistics-programs.ts, where the
 * weights w, omega and nu are defined); here they become averages with names. Read next: recipe.ts.
 */
import { invariant } from '../../config/errors.ts';
import { type RecipeStep, wholeRecipe } from './recipe-steps.ts';
import { added, colsOf, type Dense, denseFrom, multiplyTransposed, rowsOf, scaled, transpose, zeros } from './dense.ts';

/** Sums as they arrive; see collective/statistics.ts for their shapes. */
export interface StatisticsSums {
  readonly keyMoment: Float64Array;
  readonly valueMoment: Float64Array;
  readonly plainMoment: Float64Array;
  readonly queryMoments: Float64Array;
  readonly scoreWeights: Float64Array;
  readonly probabilityWeights: Float64Array;
  readonly phaseCos: Float64Array;
  readonly phaseSin: Float64Array;
}

/** Averages of one layer, small enough that a whole model's fit in memory. */
export interface KeyValueStatistics {
  /** Second moment of the merged key before RoPE, tokens weighted by what their key matters (omega). [G d, G d] */
  readonly keyMoment: Dense;
  /** Second moment about the mean of [key; value], tokens weighted by what their value matters (nu). [2 G d, 2 G d] */
  readonly covariance: Dense;
  /** Mean of [key; value], weighted likewise; zeros without centring. [2 G d, 1] */
  readonly mean: Dense;
  /** Second moment of [key; value; 1], all tokens alike. [2 G d + 1, 2 G d + 1] */
  readonly plainMoment: Dense;
  readonly heads: readonly HeadStatistics[]; // [H]
}

export interface HeadStatistics {
  /** W_h: sum of w over pairs. */
  readonly scoreWeight: number;
  /** P_h: sum of p^2 over pairs. */
  readonly probabilityWeight: number;
  /** Mean of q q^T weighted by w, q before RoPE. [d, d] */
  readonly queryMoment: Dense;
  /** phi = mean of exp(-i theta (m - t)) weighted by w: what a key pair that loses RoPE is turned by instead. [d / 2] */
  readonly phaseReal: Float64Array;
  readonly phaseImaginary: Float64Array;
  /** Share of a pair's energy that is lost when phi stands for its rotation. [d / 2] */
  readonly lostShare: Float64Array;
}

/**
 * @param scoresApart as for keyValueMoments
 * @param without steps of the recipe that are left out; weights, phase and centring are steps of this function
 * @throws InvariantError when nothing was summed
 */
export function averageStatistics(
  sums: StatisticsSums,
  { numHeads, headDim }: { readonly numHeads: number; readonly headDim: number },
  without: ReadonlySet<RecipeStep> = wholeRecipe,
  scoresApart = false,
): KeyValueStatistics {
  const half = headDim / 2;
  const heads = Array.from({ length: numHeads }, (_, head): HeadStatistics => {
    // A head that attends to one token only moves nothing: its sums are zero, and so is what it asks for.
    const scoreWeight = Math.max(0, sums.scoreWeights[head] ?? 0);
    const perWeight = scoreWeight > 0 ? 1 / scoreWeight : 0;
    const moment = sums.queryMoments.subarray(head * headDim * headDim, (head + 1) * headDim * headDim);
    const phase = (values: Float64Array): Float64Array => values.slice(head * half, (head + 1) * half);
    return {
      scoreWeight,
      probabilityWeight: sums.probabilityWeights[head] ?? 0,
      queryMoment: scaled(denseFrom(headDim, headDim, moment), perWeight),
      ...phasesOf(
        phase(sums.phaseCos).map((value) => value * perWeight),
        phase(sums.phaseSin).map((value) => -value * perWeight),
        without.has('phase'),
      ),
    };
  });
  const plain = mean(sums.plainMoment);
  const [byKey, byValue] = without.has('weights') ? [plain, plain] : [mean(sums.keyMoment), mean(sums.valueMoment)];
  return { ...keyValueMoments(byKey, byValue, plain, !without.has('centring'), scoresApart), heads };
}

/**
 * Without turning, phi is 1 and |1 - exp(-i theta d)|^2 = 2 - 2 cos(theta d) is lost on average.
 * @param real, imaginary mean of exp(-i theta d) by frequency [d / 2]
 */
export function phasesOf(
  real: Float64Array,
  imaginary: Float64Array,
  still = false,
): Pick<HeadStatistics, 'phaseReal' | 'phaseImaginary' | 'lostShare'> {
  if (still)
    return {
      phaseReal: real.map(() => 1),
      phaseImaginary: imaginary.map(() => 0),
      lostShare: real.map((value) => 2 - 2 * value),
    };
  const lostShare = real.map((value, l) => 1 - value ** 2 - (imaginary[l] ?? 0) ** 2);
  return { phaseReal: real, phaseImaginary: imaginary, lostShare };
}

/**
 * @param scoresApart keys are not centred: what scores by latents then lack would have to be inside of a cap (near tokens)
 * @param byKey second moment of the keys and whatever follows them [at least G d, at least G d]
 * @param byValue, plain second moments of [key; value; 1] under other weights of the tokens [2 G d + 1, 2 G d + 1]
 */
export function keyValueMoments(
  byKey: Dense,
  byValue: Dense,
  plain: Dense,
  centred = true,
  scoresApart = false,
): Omit<KeyValueStatistics, 'heads'> {
  const both = byValue.rows - 1;
  const average = colsOf(rowsOf(byValue, 0, both), both, both + 1);
  const origin = centred ? { ...average, data: average.data.slice() } : zeros(both, 1);
  if (scoresApart) origin.data.fill(0, 0, both / 2);
  const moment = colsOf(rowsOf(byValue, 0, both), 0, both);
  return {
    keyMoment: colsOf(rowsOf(byKey, 0, both / 2), 0, both / 2),
    covariance: about(origin, moment, average),
    mean: origin,
    plainMoment: plain,
  };
}

/** E[(x - a)(x - a)^T] from E[x x^T] and E[x]. */
function about(origin: Dense, moment: Dense, average: Dense): Dense {
  const cross = multiplyTransposed(origin, average);
  const mixed = added(added(moment, cross, -1), transpose(cross), -1);
  return added(mixed, multiplyTransposed(origin, origin), 1);
}

/** Divides by the total weight, which is the moment of the constant 1. */
function mean(moment: Float64Array): Dense {
  const size = Math.sqrt(moment.length);
  const total = moment[moment.length - 1] ?? 0;
  invariant(Number.isInteger(size) && total > 0, `statistics: a moment of ${moment.length} numbers, weight ${total}`);
  return scaled(denseFrom(size, size, moment), 1 / total);
}
