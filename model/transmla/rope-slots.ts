/**
 * RoRoPE with FreqFold (TransMLA, arXiv 2502.07864, section 4; spec: maths.md, section 2, step 2): gathers the energy of
 * the rotary keys of all KV heads in few slots.
 *
 * A pair is two numbers of a key that RoPE turns together: (l, l + d/2) of one head. A folded group is F neighbouring
 * frequencies, treated as equal; it holds G F pairs of every token. A slot is one orthogonal mix of the pairs of a group,
 * the same mix for both numbers of a pair; such a mix commutes with RoPE (exactly when F = 1). Slots of a group are the
 * eigenvectors of sum_t (Re k Re k^T + Im k Im k^T) [G F, G F], largest first. Read next: published.ts.
 */
import { ConfigError } from '../../config/errors.ts';
import type { HeadLayout } from './attention-maps.ts';
import { at, type Dense, zeros } from './dense.ts';
import { symmetricEigen } from './eigen.ts';

export interface Slot {
  /** Folded group: frequencies group * F .. (group + 1) * F of the source. */
  readonly group: number;
  /** Place in its group by energy, 0 = most. */
  readonly order: number;
  /** The source frequency with which this slot is rotated if it keeps RoPE. */
  readonly frequency: number;
  /** Weights of the pairs, index kvHead * F + (frequency within the group). [G F] */
  readonly mix: Float64Array;
  /** Mean square of the slot's two numbers per token. */
  readonly energy: number;
  /** The energy divided among pairs of source frequencies of the group; sums to `energy`. [F, F] */
  readonly energyByFrequencies: Dense;
}

/** @throws ConfigError when F does not divide the d / 2 frequencies */
export function checkFreqfold(freqfold: number, { headDim }: HeadLayout): void {
  if (!Number.isInteger(freqfold) || freqfold < 1 || (headDim / 2) % freqfold !== 0)
    throw new ConfigError(
      `freqfold: expected a divisor of the ${headDim / 2} rotary frequencies of a head, got ${freqfold}`,
    );
}

/** @param mergedDim G d */
export function checkRopeDim(ropeDim: number, mergedDim: number): void {
  if (!Number.isInteger(ropeDim) || ropeDim < 2 || ropeDim % 2 !== 0 || ropeDim > mergedDim)
    throw new ConfigError(
      `rope-dim: expected an even number from 2 to ${mergedDim} (all rotary pairs of all KV heads), got ${ropeDim}`,
    );
}

/**
 * All G d / 2 slots, by group, then by energy.
 * @param keyMoment second moment of the merged key before RoPE [G d, G d]
 * @throws ConfigError when F does not divide the d / 2 frequencies
 */
export function findSlots(keyMoment: Dense, layout: HeadLayout, freqfold: number): Slot[] {
  const frequencies = layout.headDim / 2;
  checkFreqfold(freqfold, layout);
  const slots: Slot[] = [];
  for (let group = 0; group < frequencies / freqfold; group++)
    slots.push(...slotsOfGroup(keyMoment, layout, group, freqfold));
  return slots;
}

/**
 * Which slots keep RoPE: the same number from every group where ropeDim allows, as the paper does; otherwise those with
 * the most energy. Kept slots come in the order of their frequencies, dropped ones by energy.
 */
export function chooseSlots(slots: readonly Slot[], ropeDim: number): { kept: Slot[]; dropped: Slot[] } {
  checkRopeDim(ropeDim, 2 * slots.length);
  const groups = new Set(slots.map((slot) => slot.group)).size;
  const keep = ropeDim / 2;
  const byEnergy = [...slots].sort((a, b) => b.energy - a.energy || a.group - b.group || a.order - b.order);
  const kept = keep % groups === 0 ? slots.filter((slot) => slot.order < keep / groups) : byEnergy.slice(0, keep);
  const isKept = new Set(kept);
  return {
    kept: kept.sort((a, b) => a.frequency - b.frequency || a.order - b.order),
    dropped: byEnergy.filter((slot) => !isKept.has(slot)),
  };
}

/** The slots as rows over the merged key, in halves layout: first numbers of all slots, then second numbers. [2 slots, G d] */
export function slotRows(slots: readonly Slot[], layout: HeadLayout, freqfold: number): Dense {
  const { numKvHeads, headDim } = layout;
  const out = zeros(2 * slots.length, numKvHeads * headDim);
  slots.forEach((slot, s) => {
    slot.mix.forEach((weight, pair) => {
      const col = firstOfPair(pair, slot.group, freqfold, headDim);
      out.data[s * out.cols + col] = weight;
      out.data[(slots.length + s) * out.cols + col + headDim / 2] = weight;
    });
  });
  return out;
}

function slotsOfGroup(keyMoment: Dense, layout: HeadLayout, group: number, freqfold: number): Slot[] {
  const { numKvHeads, headDim } = layout;
  const pairs = numKvHeads * freqfold;
  const columns = Array.from({ length: pairs }, (_, pair) => firstOfPair(pair, group, freqfold, headDim));
  const moment = zeros(pairs, pairs);
  columns.forEach((a, i) =>
    columns.forEach((b, j) => {
      moment.data[i * pairs + j] = at(keyMoment, a, b) + at(keyMoment, a + headDim / 2, b + headDim / 2);
    }),
  );
  const { values, vectors } = symmetricEigen(moment);
  return Array.from(values, (energy, order) => {
    const mix = vectors.data.slice(order * pairs, (order + 1) * pairs);
    return {
      group,
      order,
      // The source's own table in order: the paper rotates slot i of a group with the group's frequency i.
      frequency: group * freqfold + (order % freqfold),
      mix,
      energy: Math.max(0, energy),
      energyByFrequencies: energyByFrequencies(moment, mix, freqfold),
    };
  });
}

function energyByFrequencies(moment: Dense, mix: Float64Array, freqfold: number): Dense {
  const energy = zeros(freqfold, freqfold);
  mix.forEach((a, i) =>
    mix.forEach((b, j) => {
      const place = (i % freqfold) * freqfold + (j % freqfold);
      energy.data[place] = (energy.data[place] ?? 0) + a * b * at(moment, i, j);
    }),
  );
  return energy;
}

/** Column in the merged key of the first number of a pair. */
function firstOfPair(pair: number, group: number, freqfold: number, headDim: number): number {
  return Math.floor(pair / freqfold) * headDim + group * freqfold + (pair % freqfold);
}
