/** Float64 sums over pairs of tokens that need no matrix product any more. Read next: statistics-programs.ts. */
import { size, type Range } from '../../config/shard-plan.ts';
import type { StatisticsField } from '../../collective/statistics.ts';

export class PairSums {
  private readonly half: number;
  private readonly cos: Float64Array; // [T, d / 2]
  private readonly sin: Float64Array; // [T, d / 2]

  constructor(frequencies: readonly number[], tokens: number) {
    const half = frequencies.length;
    this.half = half;
    const angle = (i: number): number => Math.floor(i / half) * (frequencies[i % half] ?? 0);
    this.cos = Float64Array.from({ length: tokens * half }, (_, i) => Math.cos(angle(i)));
    this.sin = Float64Array.from({ length: tokens * half }, (_, i) => Math.sin(angle(i)));
  }

  /**
   * @param fields scoreWeights, probabilityWeights, phaseCos and phaseSin grow
   * @param turned of some heads and queries: sums over t of w cos(theta_l t), w sin(theta_l t) and w [heads, m, d + 1]
   * @param squares sums over t of p^2 [heads, m]
   */
  addTo(
    fields: Readonly<Record<StatisticsField, Float64Array>>,
    firstHead: number,
    queries: Range,
    turned: Float32Array,
    squares: Float32Array,
  ): void {
    const { half } = this;
    const { scoreWeights, probabilityWeights, phaseCos, phaseSin } = fields;
    const width = 2 * half + 1;
    for (let row = 0; row < squares.length; row++) {
      const head = firstHead + Math.floor(row / size(queries));
      const m = queries.start + (row % size(queries));
      probabilityWeights[head] = (probabilityWeights[head] ?? 0) + (squares[row] ?? 0);
      scoreWeights[head] = (scoreWeights[head] ?? 0) + (turned[row * width + 2 * half] ?? 0);
      for (let l = 0; l < half; l++) {
        const [cosM, sinM] = [this.cos[m * half + l] ?? 0, this.sin[m * half + l] ?? 0];
        const [withCos, withSin] = [turned[row * width + l] ?? 0, turned[row * width + half + l] ?? 0];
        const place = head * half + l;
        phaseCos[place] = (phaseCos[place] ?? 0) + cosM * withCos + sinM * withSin;
        phaseSin[place] = (phaseSin[place] ?? 0) + sinM * withCos - cosM * withSin;
      }
    }
  }
}
