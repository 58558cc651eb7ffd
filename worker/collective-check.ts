/**
 * Repeated all-reduces with a known answer, timed one by one: for `tpla doctor` and the benchmarks. Every element of
 * every rank has its own value, so a permuted, doubled or lost chunk cannot go unseen.
 */
import { InvariantError } from '../config/errors.ts';
import type { ProcessGroup } from '../collective/group.ts';

/** @returns latencies in microseconds, sorted */
export async function checkCollective(group: ProcessGroup, floats: number, count: number): Promise<number[]> {
  const buffer = new Float32Array(floats);
  const latenciesUs: number[] = [];
  for (let round = 0; round < count; round++) {
    for (let i = 0; i < floats; i++) buffer[i] = valueOf(group.rank, i, round);
    await group.barrier('collective check');
    const started = performance.now();
    await group.allReduceSum(buffer, 'collective check');
    latenciesUs.push((performance.now() - started) * 1000);
    for (let i = 0; i < floats; i++) {
      let expected = 0;
      for (let rank = 0; rank < group.worldSize; rank++) expected += valueOf(rank, i, round);
      if (buffer[i] !== expected)
        throw new InvariantError(
          `rank ${group.rank}: all-reduce of ${floats} floats gave ${buffer[i]} at index ${i}, expected ${expected} (round ${round})`,
        );
    }
  }
  return latenciesUs.sort((a, b) => a - b);
}

/** Whole numbers far below 2^24, whose float32 sums are exact in any order. */
function valueOf(rank: number, index: number, round: number): number {
  return ((index * 31 + rank * 97 + round * 7) % 1009) + rank;
}
