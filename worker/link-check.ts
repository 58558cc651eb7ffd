/**
 * Round trips between two ranks over the sockets that carry their sums, timed one by one, every element checked: for
 * `tpla doctor`. All ranks call it; those that are not asked wait. Read next: ../collective/direct.ts.
 */
import { InvariantError } from '../config/errors.ts';
import type { ProcessGroup } from '../collective/group.ts';

export interface LinkRequest {
  readonly from: number;
  readonly to: number;
  readonly floats: number;
  readonly count: number;
}

/** @returns microseconds of each round trip, sorted; empty on ranks other than `from`, and where there are no sockets */
export async function checkLink(group: ProcessGroup, { from, to, floats, count }: LinkRequest): Promise<number[]> {
  const { roundTrip } = group;
  if (roundTrip === undefined) return [];
  const buffer = new Float32Array(floats); // [floats]
  const latenciesUs: number[] = [];
  for (let round = 0; round < count; round++) {
    for (let i = 0; i < floats; i++) buffer[i] = group.rank === from ? i + round : -1;
    await group.barrier('link check');
    const started = performance.now();
    await roundTrip(from, to, buffer, 'link check');
    latenciesUs.push((performance.now() - started) * 1000);
    const wrong = group.rank === from ? buffer.findIndex((value, i) => value !== i + round) : -1;
    if (wrong !== -1)
      throw new InvariantError(
        `rank ${from}: ${floats} floats came back from rank ${to} with ${buffer[wrong]} at index ${wrong}, expected ${wrong + round}`,
      );
  }
  return group.rank === from ? latenciesUs.sort((a, b) => a - b) : [];
}
