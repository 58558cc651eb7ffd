/**
 * A cheap guess, from second moments alone, of what a published conversion will cost: for choosing between ways to spend
 * one budget of cache numbers without running each. It ranks settings of one model; its value has no unit and says
 * nothing across models. Read next: coordinator/convert/choose-settings.ts.
 */
import type { LayerPlan, SourceRope } from './published.ts';
import type { Slot } from './rope-slots.ts';

/**
 * Share of the key energy that ends at a wrong angle, plus share of the balanced [nope keys; values] that the latent
 * cannot hold. A pair that should turn by angle a and turns by b instead is off by |e^ia - e^ib|^2 = 2 - 2 cos(a - b)
 * of its energy; the mean is over distances from 0 to `longestDistance`, those of near tokens counting more (1 / (1 + distance)).
 */
export function predictedLoss(plan: LayerPlan, rope: SourceRope, longestDistance: number): number {
  const keyEnergy = sum([...plan.kept, ...plan.dropped].map((slot) => slot.energy));
  const angleLoss =
    sum(plan.kept.map((slot) => slotLoss(slot, rope.frequencies[slot.frequency] ?? 0, rope, longestDistance))) +
    sum(plan.dropped.map((slot) => slotLoss(slot, 0, rope, longestDistance)));
  const tail = sum(plan.joint.spectrum.subarray(plan.joint.basis.rows));
  const total = sum(plan.joint.spectrum);
  return (keyEnergy > 0 ? angleLoss / keyEnergy : 0) + (total > 0 ? tail / total : 0);
}

/** @param frequency with which the converted model turns the slot; 0: it lost RoPE */
function slotLoss(slot: Slot, frequency: number, rope: SourceRope, longestDistance: number): number {
  const freqfold = slot.energyByFrequency.length;
  return sum(
    slot.energyByFrequency.map((energy, f) => {
      const difference = (rope.frequencies[slot.group * freqfold + f] ?? 0) - frequency;
      return energy * (2 - 2 * meanCosine(difference, longestDistance));
    }),
  );
}

function meanCosine(frequency: number, longestDistance: number): number {
  let weighted = 0;
  let weights = 0;
  for (let distance = 0; distance <= longestDistance; distance++) {
    weighted += Math.cos(frequency * distance) / (1 + distance);
    weights += 1 / (1 + distance);
  }
  return weighted / weights;
}

function sum(values: Iterable<number>): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}
