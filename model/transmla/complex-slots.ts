/**
 * Rotary slots of the recipe. RoPE multiplies the pair of frequency theta_l, read as a complex number, by
 * exp(i theta_l t); multiplication by any complex number commutes with that, so the mix over KV heads may be unitary,
 * not only orthogonal as in rope-slots.ts. Slots of frequency l are the eigenvectors of D K_l S K_l^H D [G, G], where
 * K_l are the complex key rows and D_j^2 = sum over the query heads h of j of W_h E|q_{h,l}|^2: energy is counted as the
 * queries see it. Which slots keep RoPE is decided by what each would lose without. Read next: recipe.ts.
 */
import { type HeadLayout, kvHeadOf } from './attention-maps.ts';
import { at, type Dense, zeros } from './dense.ts';
import { symmetricEigen } from './eigen.ts';
import type { KeyValueStatistics } from './layer-statistics.ts';
import { type RecipeStep, wholeRecipe } from './recipe-steps.ts';

export interface ComplexSlot {
  /** l: index of the source frequency. */
  readonly frequency: number;
  /** Place among the slots of its frequency, 0 = most energy. */
  readonly order: number;
  /** z = sum_j conj(v_j) D_j k_{j,l}; k_{j,l} = sum over slots of v_j / D_j z. */
  readonly real: Float64Array; // [G]
  readonly imaginary: Float64Array; // [G]
  /** D_j over their root mean square, so that z is about as large as a key whatever the weights' unit. Never 0. [G] */
  readonly scales: Float64Array;
  /** lambda: energy weighted by D as it is. */
  readonly energy: number;
  /** What is lost when the slot is turned by a constant phase instead of RoPE: lambda (1 - |phi|^2), averaged over heads. */
  readonly loss: number;
}

/** All G d / 2 slots, by frequency, then by energy. */
export function findComplexSlots(
  statistics: KeyValueStatistics,
  layout: HeadLayout,
  without: ReadonlySet<RecipeStep> = wholeRecipe,
): ComplexSlot[] {
  const slots: ComplexSlot[] = [];
  for (let frequency = 0; frequency < layout.headDim / 2; frequency++) {
    slots.push(...slotsOfFrequency(statistics, layout, frequency, !without.has('unitary')));
  }
  return slots;
}

/** The `ropeDim / 2` slots that lose most without RoPE, in the order of their frequencies, and the others. */
export function chooseComplexSlots(
  slots: readonly ComplexSlot[],
  ropeDim: number,
  without: ReadonlySet<RecipeStep> = wholeRecipe,
): { kept: ComplexSlot[]; dropped: ComplexSlot[] } {
  const isChosen = !without.has('slots');
  const rank = (a: ComplexSlot, b: ComplexSlot): number =>
    isChosen ? b.loss - a.loss : a.order - b.order || b.energy - a.energy;
  const byLoss = [...slots].sort((a, b) => rank(a, b) || a.frequency - b.frequency || a.order - b.order);
  const byFrequency = (a: ComplexSlot, b: ComplexSlot): number => a.frequency - b.frequency || a.order - b.order;
  return {
    kept: byLoss.slice(0, ropeDim / 2).sort(byFrequency),
    dropped: byLoss.slice(ropeDim / 2).sort(byFrequency),
  };
}

/** The strongest slot of each of the `ropeDim / 2` fastest frequencies, and the others: what one table for all layers allows. */
export function chooseFastestSlots(
  slots: readonly ComplexSlot[],
  ropeDim: number,
): { kept: ComplexSlot[]; dropped: ComplexSlot[] } {
  const isKept = ({ order, frequency }: ComplexSlot): boolean => order === 0 && frequency < ropeDim / 2;
  return { kept: slots.filter(isKept), dropped: slots.filter((slot) => !isKept(slot)) };
}

/** z of the slots from the merged key, halves layout: real parts of all slots, then imaginary parts. [2 slots, G d] */
export function slotsFromKey(slots: readonly ComplexSlot[], layout: HeadLayout): Dense {
  const { numKvHeads, headDim } = layout;
  const out = zeros(2 * slots.length, numKvHeads * headDim);
  slots.forEach((slot, s) => {
    for (let j = 0; j < numKvHeads; j++) {
      const scale = slot.scales[j] ?? 0;
      // conj(v) D: the conjugate turns the other way.
      const factor = { real: (slot.real[j] ?? 0) * scale, imaginary: -(slot.imaginary[j] ?? 0) * scale };
      setComplex(out, s, slots.length + s, j * headDim + slot.frequency, headDim / 2, factor);
    }
  });
  return out;
}

/** The part of the merged key that the slots carry, from their z. [G d, 2 slots] */
export function keyFromSlots(slots: readonly ComplexSlot[], layout: HeadLayout): Dense {
  const { numKvHeads, headDim } = layout;
  const out = zeros(numKvHeads * headDim, 2 * slots.length);
  slots.forEach((slot, s) => {
    for (let j = 0; j < numKvHeads; j++) {
      const scale = slot.scales[j] ?? 1;
      const factor = { real: (slot.real[j] ?? 0) / scale, imaginary: (slot.imaginary[j] ?? 0) / scale };
      const row = j * headDim + slot.frequency;
      setComplex(out, row, row + headDim / 2, s, slots.length, factor);
    }
  });
  return out;
}

/** Multiplication by a complex number from the pair of columns (col, col + apart) to the rows (re, im). */
function setComplex(
  out: Dense,
  re: number,
  im: number,
  col: number,
  apart: number,
  factor: { readonly real: number; readonly imaginary: number },
): void {
  out.data[re * out.cols + col] = factor.real;
  out.data[re * out.cols + col + apart] = -factor.imaginary;
  out.data[im * out.cols + col] = factor.imaginary;
  out.data[im * out.cols + col + apart] = factor.real;
}

function slotsOfFrequency(
  statistics: KeyValueStatistics,
  layout: HeadLayout,
  frequency: number,
  isUnitary: boolean,
): ComplexSlot[] {
  const { numKvHeads, headDim } = layout;
  const { energies, lostShare } = queryEnergy(statistics, layout, frequency);
  const scales = energies.map(Math.sqrt);
  const meanEnergy = energies.reduce((sum, energy) => sum + energy, 0) / numKvHeads;
  const relative = scales.map((scale) => scale / Math.sqrt(meanEnergy));
  // Hermitian A + iB as the symmetric [[A, -B], [B, A]]: every eigenvalue occurs twice, for v and for i v.
  const embedded = zeros(2 * numKvHeads, 2 * numKvHeads);
  for (let j = 0; j < numKvHeads; j++) {
    for (let k = 0; k < numKvHeads; k++) {
      const [a, b] = [j * headDim + frequency, k * headDim + frequency];
      const [a2, b2] = [a + headDim / 2, b + headDim / 2];
      const scale = (scales[j] ?? 0) * (scales[k] ?? 0);
      const real = scale * (at(statistics.keyMoment, a, b) + at(statistics.keyMoment, a2, b2));
      const crossed = at(statistics.keyMoment, a2, b) - at(statistics.keyMoment, a, b2);
      const imaginary = isUnitary ? scale * crossed : 0;
      const set = (row: number, col: number, value: number): void => {
        embedded.data[row * embedded.cols + col] = value;
      };
      set(j, k, real);
      set(j, numKvHeads + k, -imaginary);
      set(numKvHeads + j, k, imaginary);
      set(numKvHeads + j, numKvHeads + k, real);
    }
  }
  const { values, vectors } = symmetricEigen(embedded);
  return complexBasis(vectors, numKvHeads).map(({ from, real, imaginary }, order) => {
    const energy = Math.max(0, values[from] ?? 0);
    return { frequency, order, real, imaginary, scales: relative, energy, loss: energy * lostShare };
  });
}

/** D_j^2 of every KV head, and the mean over query heads of 1 - |phi|^2, weighted by their share of D^2. */
function queryEnergy(
  statistics: KeyValueStatistics,
  layout: HeadLayout,
  frequency: number,
): { energies: Float64Array; lostShare: number } {
  const { numKvHeads, headDim } = layout;
  const energies = new Float64Array(numKvHeads);
  let total = 0;
  let lost = 0;
  statistics.heads.forEach(({ scoreWeight, queryMoment, lostShare }, head) => {
    const l2 = frequency + headDim / 2;
    const energy = scoreWeight * (at(queryMoment, frequency, frequency) + at(queryMoment, l2, l2));
    const kvHead = kvHeadOf(head, layout);
    energies[kvHead] = (energies[kvHead] ?? 0) + energy;
    total += energy;
    lost += energy * (lostShare[frequency] ?? 0);
  });
  // A KV head that no query reads still needs an invertible scale; a millionth of the mean gives it no say.
  const floor = total > 0 ? (1e-6 * total) / numKvHeads : 1;
  return { energies: energies.map((energy) => Math.max(energy, floor)), lostShare: total > 0 ? lost / total : 0 };
}

interface ComplexVector {
  /** Row of the real eigenvectors that it came from. */
  readonly from: number;
  readonly real: Float64Array;
  readonly imaginary: Float64Array;
}

/** `size` orthonormal complex vectors out of the 2 size real eigenvectors [u; v] = u + iv, in their order. */
function complexBasis(vectors: Dense, size: number): ComplexVector[] {
  const basis: ComplexVector[] = [];
  for (let row = 0; row < 2 * size && basis.length < size; row++) {
    const real = vectors.data.slice(row * 2 * size, row * 2 * size + size);
    const imaginary = vectors.data.slice(row * 2 * size + size, (row + 1) * 2 * size);
    for (const chosen of basis) removeComponent(real, imaginary, chosen);
    const norm = Math.hypot(...real, ...imaginary);
    // What is left of i v, or of a vector of an eigenspace that is spanned already, is rounding.
    if (norm < 1e-3) continue;
    basis.push({ from: row, real: real.map((x) => x / norm), imaginary: imaginary.map((x) => x / norm) });
  }
  return basis;
}

/** x -= b (b^H x) */
function removeComponent(
  real: Float64Array,
  imaginary: Float64Array,
  { real: br, imaginary: bi }: ComplexVector,
): void {
  let re = 0;
  let im = 0;
  for (let i = 0; i < br.length; i++) {
    const [ar, ai, xr, xi] = [br[i] ?? 0, bi[i] ?? 0, real[i] ?? 0, imaginary[i] ?? 0];
    re += ar * xr + ai * xi;
    im += ar * xi - ai * xr;
  }
  for (let i = 0; i < br.length; i++) {
    const [ar, ai] = [br[i] ?? 0, bi[i] ?? 0];
    real[i] = (real[i] ?? 0) - (ar * re - ai * im);
    imaginary[i] = (imaginary[i] ?? 0) - (ar * im + ai * re);
  }
}
