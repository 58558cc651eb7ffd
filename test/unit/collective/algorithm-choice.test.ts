import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { type AllReduceAlgorithm, bySize, choiceOf, measureAlgorithms } from '../../../collective/algorithm-choice.ts';
import { makeTwoLevels, makeZeroMq } from '../../helpers/groups.ts';
import { expectSameBits, onAll, sumOf, valuesOf } from '../../suites/process-group.ts';

it('chooses what the nearest measured size chose', () => {
  const choice = choiceOf([
    { floats: 512, best: 'direct' },
    { floats: 4096, best: 'scatter' },
    { floats: 32_768, best: 'ring' },
  ]);
  const sizes = [1, 512, 1448, 1449, 4096, 11_585, 11_586, 32_768, 10_000_000];
  const chosen = ['direct', 'direct', 'direct', 'scatter', 'scatter', 'scatter', 'ring', 'ring', 'ring'];
  expect(sizes.map(choice)).toEqual(chosen);
});

it('goes by size where nothing was measured', () => {
  expect([1, 8192, 8193].map(choiceOf([]))).toEqual(['direct', 'direct', 'ring']);
  expect([1, 8192, 8193].map(bySize)).toEqual(['direct', 'direct', 'ring']);
});

it('finds the fastest, and stops when a link is slow', async () => {
  // The others take 3 ms at 512 numbers, 24 ms at 4096.
  const sum = async (algorithm: AllReduceAlgorithm, buffer: Float32Array) => {
    if (algorithm !== (buffer.length < 1000 ? 'direct' : 'scatter')) await sleep(3 * Math.ceil(buffer.length / 512));
  };
  const measured = await measureAlgorithms(sum, 2);
  expect(measured).toEqual([
    { floats: 512, best: 'direct' },
    { floats: 4096, best: 'scatter' },
  ]);
});

it.each(['flat', 'two levels'])('all ranks of a group choose alike: %s', async (kind) => {
  await using made = await (kind === 'flat'
    ? makeZeroMq(3, 20_000, 'auto')
    : makeTwoLevels(3, 20_000, 'auto', 'aab'.split('')));
  await Promise.all(made.groups.map((group) => group.chooseAlgorithms()));
  for (const floats of [7, 3000, 100_000]) {
    const parts = made.groups.map(({ rank }) => valuesOf(floats, rank, 1));
    const expected = kind === 'flat' ? sumOf(parts) : sumOf(parts, 'aab'.split(''));
    await onAll(made.groups, async (group) => {
      const buffer = parts[group.rank]!.slice();
      await group.allReduceSum(buffer, 'x');
      expectSameBits(buffer, expected);
    });
  }
});

it('names a rank that is missing while the algorithms are measured', async () => {
  await using made = await makeZeroMq(3, 300, 'auto');
  const present = made.groups.filter(({ rank }) => rank !== 1);
  for (const result of await Promise.allSettled(present.map((group) => group.chooseAlgorithms())))
    expect(String(result.status === 'rejected' && result.reason)).toMatch(
      /nothing from rank 1 .*all-reduce #1 \(choice of algorithm, 2048 B\)/,
    );
});
