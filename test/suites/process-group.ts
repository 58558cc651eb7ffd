/**
 * What every ProcessGroup must do, run on each implementation by test/unit/collective/. Values are distinct per rank
 * and element and of very different sizes, so that another order of summation gives other bits; the expected bits come
 * from the definition in group.ts, computed here once more.
 */
import { describe, expect, it } from 'vitest';
import { InvariantError, PeerError } from '../../config/errors.ts';
import type { ProcessGroup } from '../../collective/group.ts';

export interface MadeGroups extends AsyncDisposable {
  readonly groups: readonly ProcessGroup[]; // [worldSize]
  /** Of a group of two levels, which names and sums them: each rank's host. [worldSize] */
  readonly hosts?: readonly string[];
}

export type MakeGroups = (worldSize: number, timeoutMs: number) => Promise<MadeGroups>;

const worldSizes = [1, 2, 3, 4, 5, 8];
/** None, one, fewer than ranks, no multiple of anything, one layer of SmolLM2, longer than a slot or a direct message. */
const lengths = [0, 1, 3, 7, 576, 1000, 10_000, 40_001];
/** Largest error of what a payload carries, relative to the largest value: half a step, and the rounding of a scale. */
const steps = [
  ['f16', 2 ** -11],
  ['q8_0', 1 / 254 + 2 ** -11],
] as const;
/** Of valuesOf. */
const largestValue = 512;
const patientMs = 20_000;

export function describeProcessGroup(name: string, make: MakeGroups): void {
  describe(name, () => {
    describe.each(worldSizes)('worldSize %i', (worldSize) => {
      it('sums in the defined order, to the same bits on every rank', async () => {
        await using made = await make(worldSize, patientMs);
        const results = await onAll(made.groups, async (group) => {
          const sums: Float32Array[] = [];
          for (const length of lengths) {
            const buffer = valuesOf(length, group.rank, length);
            await group.allReduceSum(buffer, `length ${length}`);
            sums.push(buffer);
          }
          return sums;
        });
        for (const [k, length] of lengths.entries()) {
          const parts = made.groups.map(({ rank }) => valuesOf(length, rank, length));
          for (const sums of results) expectSameBits(sums[k]!, sumOf(parts, made.hosts));
        }
        for (const { stats } of made.groups) {
          expect(stats.operations).toBe(lengths.length);
          expect(stats.bytesSent > 0).toBe(worldSize > 1);
          expect(stats.bytesReceived > 0).toBe(worldSize > 1);
        }
      });

      it('sums what travels in fewer bits to the same bits on every rank', async () => {
        await using made = await make(worldSize, patientMs);
        for (const [payload, step] of steps) {
          for (const length of lengths) {
            const parts = made.groups.map(({ rank }) => valuesOf(length, rank, length));
            const sums = await onAll(made.groups, async (group) => {
              const buffer = parts[group.rank]!.slice();
              await group.allReduceSum(buffer, payload, payload);
              return buffer;
            });
            // A part, or the sum of a host's, is rounded when it is sent, and a long sum once more.
            expectNear(sums[0]!, sumOf(parts), 2 * worldSize * largestValue * step);
            for (const sum of sums) expectSameBits(sum, sums[0]!);
          }
        }
      });

      it('concatenates parts of different lengths in rank order', async () => {
        await using made = await make(worldSize, patientMs);
        for (const scale of [1, 0, 999, 40_000]) {
          const sizes = made.groups.map(({ rank }) => (scale * ((rank + 1) % 3)) / (rank > 2 ? 2 : 1)).map(Math.floor);
          const expected = made.groups.flatMap(({ rank }) => [...valuesOf(sizes[rank]!, rank, scale)]);
          await onAll(made.groups, async (group) => {
            const out = new Float32Array(expected.length).fill(NaN);
            await group.allGather(valuesOf(sizes[group.rank]!, group.rank, scale), sizes, out, 'logits');
            expectSameBits(out, Float32Array.from(expected));
          });
        }
      });

      it('copies from every root, in any mix with other operations', async () => {
        await using made = await make(worldSize, patientMs);
        await onAll(made.groups, async (group) => {
          for (let root = 0; root < worldSize; root++) {
            for (const length of root === 1 ? [5, 35_000] : [0, 5]) {
              const buffer = valuesOf(length, group.rank, root);
              await group.broadcast(buffer, root, 'weights');
              expectSameBits(buffer, valuesOf(length, root, root));
            }
            if (root % 2 === 0) await group.barrier('between');
            const one = Float32Array.of(group.rank + 1);
            await group.allReduceSum(one, 'count');
            expect(one[0]).toBe((worldSize * (worldSize + 1)) / 2);
          }
        });
      });

      it('holds everyone at a barrier until the last has come', async () => {
        await using made = await make(worldSize, patientMs);
        for (let last = 0; last < worldSize; last++) {
          let lastCame = false;
          await onAll(made.groups, async (group) => {
            if (group.rank === last) {
              await new Promise((resolve) => setImmediate(resolve));
              lastCame = true;
            }
            await group.barrier('all here');
            expect(lastCame).toBe(true);
          });
        }
      });
    });

    it('names the missing rank, the operation and the deadline, and then refuses to go on', async () => {
      await using made = await make(2, 400);
      const [first] = made.groups;
      const late = first!.allReduceSum(new Float32Array(2304), 'layer 12, attention');
      await expect(late).rejects.toThrow(PeerError);
      await expect(late).rejects.toThrow(
        `rank 0: nothing from ${nameOf(made, 1)} for all-reduce #1 (layer 12, attention, 9216 B) in 400 ms`,
      );
      await expect(first!.barrier('next')).rejects.toThrow(
        'rank 0: barrier (next) after a failure: rank 0: nothing from',
      );
    });

    it('finds ranks in different operations, and names both', async () => {
      await using made = await make(2, patientMs);
      const [first, second] = made.groups;
      const errors = await errorsOf([first!.allReduceSum(new Float32Array(10), 'attention'), second!.barrier('stop')]);
      for (const error of errors) {
        expect(error).toBeInstanceOf(InvariantError);
        expect(String(error)).toMatch(
          /rank \d is in .*, but rank \d( \(\w+\))? (sent|is in) .*; all ranks must call the same/,
        );
        expect(String(error)).toContain('all-reduce #1 (');
        expect(String(error)).toContain('barrier #1 (');
      }
    });

    it('finds ranks with different lengths', async () => {
      await using made = await make(2, patientMs);
      const errors = await errorsOf(
        made.groups.map((group) => group.allReduceSum(new Float32Array(10 + group.rank), 'x')),
      );
      for (const error of errors) expect(String(error)).toMatch(/InvariantError.*4[04] B.*4[04] B/);
    });

    it('refuses a second operation while one runs', async () => {
      await using made = await make(2, patientMs);
      const [first, second] = made.groups;
      const running = first!.barrier('one');
      await expect(first!.barrier('two')).rejects.toThrow(
        'rank 0: barrier (two) while barrier #1 (one, 0 B) runs; await',
      );
      await Promise.all([running, second!.barrier('one')]);
    });

    it('refuses a gather or a root that does not fit', async () => {
      await using made = await make(1, patientMs);
      const [group] = made.groups;
      const gather = group!.allGather(new Float32Array(2), [3], new Float32Array(3), 'logits');
      await expect(gather).rejects.toThrow(
        "rank 0: all-gather (logits): part of 2, lengths [3], out of 3; expected 1 lengths, the part's being 3, and their sum 3",
      );
      await using other = await make(1, patientMs);
      await expect(other.groups[0]!.broadcast(new Float32Array(1), 1, 'x')).rejects.toThrow('root 1, expected 0 to 0');
    });

    it('gives up the operation in flight when it is disposed of', async () => {
      await using made = await make(2, patientMs);
      const [first] = made.groups;
      const waiting = expect(first!.barrier('alone')).rejects.toThrow(
        'rank 0: barrier #1 (alone, 0 B) was given up: the group was closed',
      );
      await first![Symbol.asyncDispose]();
      await waiting;
      await expect(first!.barrier('again')).rejects.toThrow('rank 0: barrier (again) after the group was closed');
    });
  });
}

/** Runs the same program on every rank; the first failure is thrown when all have ended. */
export async function onAll<T>(
  groups: readonly ProcessGroup[],
  program: (group: ProcessGroup) => Promise<T>,
): Promise<T[]> {
  const results = await Promise.allSettled(groups.map(program));
  const failure = results.find((result) => result.status === 'rejected');
  if (failure) throw failure.reason;
  return results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
}

/** Distinct per rank and element, of magnitudes 2^-12 to 2^9. */
export function valuesOf(length: number, rank: number, seed: number): Float32Array {
  const values = new Float32Array(length);
  let state = seed * 7919 + rank * 104_729 + 1;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    values[i] = ((state >>> 8) - 2 ** 23) * powers[state >>> 27]!;
  }
  return values;
}

const powers = Float64Array.from({ length: 32 }, (_, k) => 2 ** ((k * 3) % 24) * 2 ** -35);

function nameOf({ hosts }: MadeGroups, rank: number): string {
  return hosts ? `rank ${rank} (${hosts[rank]})` : `rank ${rank}`;
}

/**
 * The definition in group.ts: element by element, starting with the rank that owns the chunk; of two levels, first of
 * each host's ranks, then of the hosts.
 */
export function sumOf(parts: readonly Float32Array[], hosts?: readonly string[]): Float32Array {
  if (hosts) return sumOf([...new Set(hosts)].map((host) => sumOf(parts.filter((_, rank) => hosts[rank] === host))));
  const worldSize = parts.length;
  const length = parts[0]!.length;
  const sums = new Float32Array(length);
  let chunk = 0;
  for (let i = 0; i < length; i++) {
    while (i >= Math.floor(((chunk + 1) * length) / worldSize)) chunk++;
    let sum = parts[chunk]![i]!;
    for (let k = 1; k < worldSize; k++) sum = Math.fround(sum + parts[(chunk + k) % worldSize]![i]!);
    sums[i] = sum;
  }
  return sums;
}

export function expectSameBits(actual: Float32Array, expected: Float32Array): void {
  expect(actual.length).toBe(expected.length);
  const a = new Uint32Array(actual.buffer, actual.byteOffset, actual.length);
  const b = new Uint32Array(expected.buffer, expected.byteOffset, expected.length);
  const at = a.findIndex((bits, i) => bits !== b[i]);
  if (at !== -1) expect.fail(`element ${at} of ${a.length}: ${actual[at]}, expected ${expected[at]}`);
}

function expectNear(actual: Float32Array, expected: Float32Array, tolerance: number): void {
  const at = actual.findIndex((value, i) => Math.abs(value - expected[i]!) > tolerance);
  if (at !== -1) expect.fail(`element ${at}: ${actual[at]}, expected ${expected[at]} within ${tolerance}`);
}

async function errorsOf(promises: Promise<void>[]): Promise<unknown[]> {
  const results = await Promise.allSettled(promises);
  return results.map((result) => (result.status === 'rejected' ? result.reason : 'no error'));
}
