/**
 * A cheap guess, from second moments alone, of what a published conversion will cost: for choosing between ways to spend
 * one budget of cache numbers without running each. It ranks settings of one model; its value has no unit and says
 * nothing across models. Read next: coordinator/convert/choose-settings.ts.
 */
import type { LayerPlan, SourceRope } from './published.ts';
import type { Slot } from './rope-slots.ts';

/**
 * Share of the key energy that ends at a wrong angle, plus share of the balanced [nope keys; values] that the latent
 * cannot hold. A slot sums parts z_f of frequencies a_f and turns as a whole by b; it is off by
 * |sum_f z_f (e^(i a_f t) - e^(i b t))|^2 at distance t, averaged over distances up to `longestDistance` with weights
 * 1 / (1 + t): near tokens count more.
 */
export function predictedLoss(plan: LayerPlan, rope: SourceRope, longestDistance: number): number {
  const cosines = new Map<number, number>();
  const meanCosine = (frequency: number): number => {
    const known = cosines.get(Math.abs(frequency));
    if (known !== undefined) return known;
    const value = nearMeanCosine(Math.abs(frequency), longestDistance);
    cosines.set(Math.abs(frequency), value);
    return value;
  };
  const keyEnergy = sum([...plan.kept, ...plan.dropped].map((slot) => slot.energy));
  const angleLoss =
    sum(plan.kept.map((slot) => slotLoss(slot, rope.frequencies[slot.frequency] ?? 0, rope, meanCosine))) +
    sum(plan.dropped.map((slot) => slotLoss(slot, 0, rope, meanCosine)));
  const tail = sum(plan.joint.spectrum.subarray(plan.joint.basis.rows));
  const total = sum(plan.joint.spectrum);
  return (keyEnergy > 0 ? angleLoss / keyEnergy : 0) + (total > 0 ? tail / total : 0);
}

/** @param turned frequency with which the converted model turns the slot; 0: it lost RoPE */
function slotLoss(slot: Slot, turned: number, rope: SourceRope, meanCosine: (frequency: number) => number): number {
  const freqfold = slot.energyByFrequencies.rows;
  const source = (f: number): number => rope.frequencies[slot.group * freqfold + f] ?? 0;
  let loss = 0;
  slot.energyByFrequencies.data.forEach((energy, place) => {
    const [a, b] = [source(Math.floor(place / freqfold)), source(place % freqfold)];
    loss += energy * (meanCosine(a - b) - meanCosine(a - turned) - meanCosine(b - turned) + 1);
  });
  return loss;
}

function nearMeanCosine(frequency: number, longestDistance: number): number {
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
