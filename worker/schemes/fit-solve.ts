/**
 * The equations of a layer's fit: sums over windows and ranks in float32, solved in float64. Read next: fit-session.ts.
 *
 * Keys. A shard I sees the columns c_I of a latent, not the others c_J. Given c_I, the best guess of c_J is
 * m_J + M (c_I - m_I), M = C_JI C_II^-1, with C the covariance of latents over all tokens but the first few. Weighing tokens
 * by the attention that they get fits those that have it and lets others, which must not get it, score anything: twice
 * the loss of no fit. So W_UK,I becomes W_UK,I + M^T W_UK,J, and Q_J (m_J - M m_I) is added to all scores of the query.
 * Values. The mixtures of all groups and a constant against the output of exact attention, ridge towards W_UV.
 */
import { invariant } from '../../config/errors.ts';
import { type Dense, congruence, denseFrom, multiply, multiplyTransposed, zeros } from '../../model/transmla/dense.ts';
import { ridge, type RidgePull } from '../../model/transmla/ridge.ts';
import { firstTokens, type FitGroup, type FitSizes } from './fit-formulas.ts';

/** The pull towards no correction. */
const pull: RidgePull = { strength: 0.01, energy: 'mean' };

/** Of a layer, uncut. */
export interface LayerMatrices {
  readonly keyUp: Float32Array; // [heads, r, n]
  readonly valueUp: Float32Array; // [heads, v, r]
}

/** Of the latent c' = U c: W_UK U^T, W_UV U^T. @param rotation U [r, r] */
export function rotatedMatrices(
  { keyUp, valueUp }: LayerMatrices,
  rotation: Float32Array,
  { config, numHeads }: FitSizes,
): LayerMatrices {
  const { latentDim: r, nopeDim: n, valueDim: v } = config;
  const turn = denseFrom(r, r, rotation);
  const keys = new Float32Array(keyUp.length);
  for (let head = 0; head < numHeads; head++) {
    const from = head * r * n;
    keys.set(multiply(turn, denseFrom(r, n, keyUp.subarray(from, from + r * n))).data, from);
  }
  const values = multiplyTransposed(denseFrom(numHeads * v, r, valueUp), turn);
  return { keyUp: keys, valueUp: Float32Array.from(values.data) };
}

export class KeyMoments {
  /** Products of columns [r, r], then columns [r], then how many tokens. */
  readonly sums: Float32Array;
  private readonly sizes: FitSizes;

  constructor(sizes: FitSizes) {
    this.sizes = sizes;
    const { latentDim } = sizes.config;
    this.sums = new Float32Array(latentDim * latentDim + latentDim + 1);
  }

  /** Sums over the tokens of one window. */
  add({ products, columns }: { products: Float32Array; columns: Float32Array }): void {
    addTo(this.sums, products, 0);
    addTo(this.sums, columns, products.length);
    const count = products.length + columns.length;
    this.sums[count] = (this.sums[count] ?? 0) + this.sizes.tokens - firstTokens(this.sizes);
  }

  /**
   * @param keys [heads, r, n] in the order of the groups, offsets [groups, heads, n + 1]; overwritten
   * @param isFitted otherwise a group's columns of W_UK as they are
   */
  solve({ keyUp }: LayerMatrices, keys: Float32Array, offsets: Float32Array, isFitted: boolean): void {
    const { numHeads, groups, config } = this.sizes;
    const { latentDim: r, nopeDim: n } = config;
    keys.fill(0);
    offsets.fill(0);
    const { mean, covariance } = this.statistics();
    const rowOf = (head: number, column: number): Float32Array =>
      keyUp.subarray((head * r + column) * n, (head * r + column + 1) * n);
    groups.forEach((group, index) => {
      const own = columnNumbers(group);
      const others = isFitted ? Array.from({ length: r }, (_, i) => i).filter((i) => !own.includes(i)) : [];
      const guess = guessOf(covariance, own, others); // [others, own]
      const shifts = others.map((column, row) =>
        own.reduce(
          (shift, i, j) => shift - (guess.data[row * own.length + j] ?? 0) * (mean[i] ?? 0),
          mean[column] ?? 0,
        ),
      );
      for (let head = 0; head < numHeads; head++) {
        own.forEach((column, j) => {
          const to = (head * r + group.place.start + j) * n;
          addScaled(keys, to, rowOf(head, column), 1);
          others.forEach((other, row) =>
            addScaled(keys, to, rowOf(head, other), guess.data[row * own.length + j] ?? 0),
          );
        });
        others.forEach((other, row) =>
          addScaled(offsets, (index * numHeads + head) * (n + 1), rowOf(head, other), shifts[row] ?? 0),
        );
      }
    });
  }

  /** Of the latent as it stands, or rotated. */
  get covariance(): Dense {
    return this.statistics().covariance;
  }

  /** From now on of c' = U c. @param rotation U [r, r] */
  rotate(rotation: Float32Array): void {
    const { latentDim: r } = this.sizes.config;
    const turn = denseFrom(r, r, rotation);
    this.sums.set(congruence(turn, denseFrom(r, r, this.sums.subarray(0, r * r))).data);
    this.sums.set(multiplyTransposed(denseFrom(1, r, this.sums.subarray(r * r, r * r + r)), turn).data, r * r);
  }

  private statistics(): { mean: Float64Array; covariance: Dense } {
    const { latentDim: r } = this.sizes.config;
    const count = this.sums[r * r + r] ?? 1;
    const mean = Float64Array.from(this.sums.subarray(r * r, r * r + r), (sum) => sum / count);
    const covariance = denseFrom(r, r, this.sums.subarray(0, r * r));
    for (let i = 0; i < r; i++)
      for (let j = 0; j < r; j++)
        covariance.data[i * r + j] = (covariance.data[i * r + j] ?? 0) / count - (mean[i] ?? 0) * (mean[j] ?? 0);
    return { mean, covariance };
  }
}

/** target[from + i] += factor * values[i] */
function addScaled(target: Float32Array, from: number, values: Float32Array, factor: number): void {
  for (let i = 0; i < values.length; i++) target[from + i] = (target[from + i] ?? 0) + factor * (values[i] ?? 0);
}

/** M = C_JI C_II^-1. @param own I  @param others J  @returns [others, own] */
function guessOf(covariance: Dense, own: readonly number[], others: readonly number[]): Dense {
  const r = covariance.rows;
  const part = (rows: readonly number[]): Dense => {
    const out = zeros(rows.length, own.length);
    rows.forEach((row, i) =>
      own.forEach((column, j) => (out.data[i * own.length + j] = covariance.data[row * r + column] ?? 0)),
    );
    return out;
  };
  return ridge(part(own), part(others), zeros(others.length, own.length), pull).map;
}

function columnNumbers({ columns }: FitGroup): number[] {
  return columns.flatMap(({ start, end }) => Array.from({ length: end - start }, (_, i) => start + i));
}

export class ValueMoments {
  /** [heads, r + 1 + v, r + 1]: features and targets times features. */
  readonly sums: Float32Array;
  private readonly sizes: FitSizes;

  constructor(sizes: FitSizes) {
    this.sizes = sizes;
    const { latentDim, valueDim } = sizes.config;
    this.sums = new Float32Array(sizes.numHeads * (latentDim + 1 + valueDim) * (latentDim + 1));
  }

  add(products: Float32Array): void {
    addTo(this.sums, products, 0);
  }

  /**
   * @param values [heads, v, r], overwritten  @param isFitted otherwise W_UV as it is
   * @returns the constant of every head's output [heads, v]
   */
  solve({ valueUp }: LayerMatrices, values: Float32Array, isFitted: boolean): Float32Array {
    const { numHeads, config } = this.sizes;
    const { latentDim: r, valueDim: v } = config;
    const width = r + 1;
    const bias = new Float32Array(numHeads * v);
    for (let head = 0; head < numHeads; head++) {
      const own = this.sums.subarray(head * (width + v) * width, (head + 1) * (width + v) * width);
      const gram = denseFrom(width, width, own.subarray(0, width * width));
      const cross = denseFrom(v, width, own.subarray(width * width));
      const prior = zeros(v, width);
      for (let i = 0; i < v; i++)
        this.setPrior(prior, i * width, valueUp.subarray((head * v + i) * r, (head * v + i + 1) * r));
      const solved = isFitted ? ridge(gram, cross, prior, pull).map : prior;
      for (let i = 0; i < v; i++) {
        values.set(solved.data.subarray(i * width, i * width + r), (head * v + i) * r);
        bias[head * v + i] = solved.data[i * width + r] ?? 0;
      }
    }
    return bias;
  }

  /** W_UV in the order of the groups; of columns that several groups keep, the first counts. @param row [r] */
  private setPrior(prior: Dense, from: number, row: Float32Array): void {
    const seen = new Set<number>();
    for (const group of this.sizes.groups)
      columnNumbers(group).forEach((column, i) => {
        if (!seen.has(column)) prior.data[from + group.place.start + i] = row[column] ?? 0;
        seen.add(column);
      });
  }
}

/** sums[from + i] += values[i] */
export function addTo(sums: Float32Array, values: Float32Array, from: number): void {
  invariant(from + values.length <= sums.length, `fit: ${values.length} numbers at ${from} of ${sums.length}`);
  for (let i = 0; i < values.length; i++) sums[from + i] = (sums[from + i] ?? 0) + (values[i] ?? 0);
}
