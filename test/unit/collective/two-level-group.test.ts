import { describe, expect, it } from 'vitest';
import { PeerError } from '../../../config/errors.ts';
import { makeTwoLevels } from '../../helpers/groups.ts';
import { describeProcessGroup, expectSameBits, onAll, sumOf, valuesOf } from '../../suites/process-group.ts';

describe.skipIf(process.platform === 'win32')('where there is POSIX shared memory', () => {
  describeProcessGroup('two levels', (worldSize, timeoutMs) => makeTwoLevels(worldSize, timeoutMs));
  describeProcessGroup('two levels, leaders in a ring', (worldSize, timeoutMs) =>
    makeTwoLevels(worldSize, timeoutMs, 'ring'),
  );

  it('sends between hosts what one rank of each would, whatever their number', async () => {
    await using made = await makeTwoLevels(5, 20_000, 'direct', 'aaabb'.split(''));
    await onAll(made.groups, (group) => group.allReduceSum(new Float32Array(900), 'x'));
    // Into shared memory 900 values, and once more by the leaders, for their hosts; to the other leader 900.
    expect(made.groups.map(({ stats }) => stats.bytesSent / 3600)).toEqual([3, 1, 1, 3, 1]);
    expect(made.groups.map(({ stats }) => stats.bytesReceived / 3600)).toEqual([3, 3, 3, 2, 2]);
  });

  it('names a rank that is missing on another host, on all ranks', async () => {
    await using made = await makeTwoLevels(5, 300, 'auto', 'aabbb'.split(''));
    const present = made.groups.filter(({ rank }) => rank !== 3);
    const results = await Promise.allSettled(
      present.map((group) => group.allReduceSum(new Float32Array(576), 'layer 3, attention')),
    );
    for (const [k, result] of results.entries()) {
      expect(result).toMatchObject({ status: 'rejected', reason: expect.any(PeerError) as PeerError });
      expect(String(result.status === 'rejected' && result.reason)).toMatch(
        new RegExp(
          `^PeerError: rank ${present[k]!.rank}: .*nothing from rank 3 \\(b\\) for all-reduce #1 \\(layer 3, attention, 2304 B\\) in 300 ms$`,
        ),
      );
    }
  });

  it('names a leader that is missing, on all ranks', async () => {
    await using made = await makeTwoLevels(5, 300, 'auto', 'aabbb'.split(''));
    const present = made.groups.filter(({ rank }) => rank !== 2);
    const results = await Promise.allSettled(present.map((group) => group.barrier('before')));
    for (const result of results)
      expect(String(result.status === 'rejected' && result.reason)).toMatch(/nothing from rank 2 \(b\) for barrier #1/);
  });

  it('gives other bits than a flat sum, where it must', async () => {
    await using made = await makeTwoLevels(4, 20_000, 'auto', 'aabb'.split(''));
    const parts = made.groups.map(({ rank }) => valuesOf(1000, rank, 1));
    const sums = await onAll(made.groups, async (group) => {
      const buffer = parts[group.rank]!.slice();
      await group.allReduceSum(buffer, 'x');
      return buffer;
    });
    expect(sums[0]).not.toEqual(sumOf(parts));
    for (const sum of sums) expectSameBits(sum, sumOf(parts, made.hosts));
  });
});
