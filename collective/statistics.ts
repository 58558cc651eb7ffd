/**
 * The numbers that one rank returns for one layer of a calibration, as one array: which fields, in which
 * order, how long. All are sums over the tokens of the rank's windows, so that those of ranks add up. What they mean
 * is in worker/calibration/statistics-programs.ts (computed) and model/transmla/layer-statistics.ts (used).
 */
import { invariant } from '../config/errors.ts';

export interface StatisticsShape {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
}

/**
 * keyMoment [G d + 1, G d + 1]: sum of omega_t times [k; 1] [k; 1]^T, keys before RoPE; valueMoment, plainMoment
 * [2 G d + 1, 2 G d + 1]: sums of nu_t and of 1 times [k; v; 1] [k; v; 1]^T; queryMoments [H, d, d]: sum of w q q^T, q before
 * RoPE; scoreWeights [H]: sum of w; probabilityWeights [H]: sum of p^2; phaseCos, phaseSin
 * [H, d / 2]: sums of w cos(theta (m - t)) and w sin(theta (m - t)).
 */
export type StatisticsField =
  | 'keyMoment'
  | 'valueMoment'
  | 'plainMoment'
  | 'queryMoments'
  | 'scoreWeights'
  | 'probabilityWeights'
  | 'phaseCos'
  | 'phaseSin';

/** Views into a payload, by field. */
export function splitStatistics<Values extends Float32Array | Float64Array>(
  payload: Values,
  shape: StatisticsShape,
): Record<StatisticsField, Values> {
  const lengths = lengthsOf(shape);
  let end = 0;
  const view = (field: StatisticsField): Values => {
    const start = end;
    end += lengths[field];
    // subarray of a typed array has the type of the array
    return payload.subarray(start, end) as Values;
  };
  const views = {
    keyMoment: view('keyMoment'),
    valueMoment: view('valueMoment'),
    plainMoment: view('plainMoment'),
    queryMoments: view('queryMoments'),
    scoreWeights: view('scoreWeights'),
    probabilityWeights: view('probabilityWeights'),
    phaseCos: view('phaseCos'),
    phaseSin: view('phaseSin'),
  };
  invariant(end === payload.length, `statistics: ${payload.length} numbers, expected ${end}`);
  return views;
}

export function statisticsLength(shape: StatisticsShape): number {
  return Object.values(lengthsOf(shape)).reduce((sum, length) => sum + length, 0);
}

function lengthsOf({ numHeads, numKvHeads, headDim }: StatisticsShape): Record<StatisticsField, number> {
  const moment = (2 * numKvHeads * headDim + 1) ** 2;
  return {
    keyMoment: (numKvHeads * headDim + 1) ** 2,
    valueMoment: moment,
    plainMoment: moment,
    queryMoments: numHeads * headDim * headDim,
    scoreWeights: numHeads,
    probabilityWeights: numHeads,
    phaseCos: (numHeads * headDim) / 2,
    phaseSin: (numHeads * headDim) / 2,
  };
}
