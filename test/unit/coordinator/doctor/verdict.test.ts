import { expect, test } from 'vitest';
import type { RankCheck } from '../../../../coordinator/doctor/check-ranks.ts';
import { judge } from '../../../../coordinator/doctor/verdict.ts';
import { describeMachine } from '../../../../coordinator/machine.ts';

const machine = { ...describeMachine(), host: 'here', cores: 2, memoryBytes: 8e9, zeromq: '6', ggml: '3', gpujs: '2' };

function check(changes: Partial<RankCheck> = {}): RankCheck {
  const rank = {
    host: 'here',
    device: 'a core',
    gigabytesPerSecond: 10,
    gigaflopsPerSecond: 40,
    weightBytes: 1e8,
    fullCacheBytes: 1e8,
  };
  const sums = { floats: 576, count: 10, p50Us: 5, p99Us: 9 };
  return {
    scheme: 'gqa',
    transport: 'shared memory',
    threads: 1,
    short: sums,
    long: sums,
    ranks: [
      { rank: 0, ...rank },
      { rank: 1, ...rank },
    ],
    ...changes,
  };
}

test('nothing to change', () => {
  expect(judge(machine, check(), '')).toEqual({ ready: true, advice: [] });
});

test('without a model nothing is known, and what is missing is said', () => {
  expect(judge(machine, undefined, 'fetch it')).toEqual({ ready: false, advice: ['fetch it'] });
});

test('more threads than cores', () => {
  const { ready, advice } = judge(machine, check({ threads: 2 }), '');
  expect(ready).toBe(true);
  expect(advice).toEqual([expect.stringContaining('2 ranks with 2 threads each want 4 cores, this machine has 2')]);
});

test('a cache that does not fit is no cluster', () => {
  const ranks = check().ranks.map((rank) => ({ ...rank, fullCacheBytes: 5e9 }));
  const { ready, advice } = judge(machine, check({ ranks }), '');
  expect(ready).toBe(false);
  expect(advice).toEqual([expect.stringContaining('a full cache needs 10.5 GB in all, this machine has 8.0 GB')]);
});

test('ranks of other machines do not count here', () => {
  const ranks = check().ranks.map((rank) => ({ ...rank, fullCacheBytes: 5e9, host: `host${rank.rank}` }));
  expect(judge(machine, check({ ranks, transport: 'zeromq' }), '').ready).toBe(true);
});

test('slow sums and unlike ranks', () => {
  const [first, second] = check().ranks;
  const ranks = [first!, { ...second!, gigabytesPerSecond: 4 }];
  const sums = { floats: 576, count: 10, p50Us: 90, p99Us: 120 };
  const { advice } = judge(machine, check({ ranks, short: sums, transport: 'zeromq' }), '');
  expect(advice).toEqual([
    expect.stringContaining('--transport shm'),
    expect.stringContaining('(4.0 to 10.0 GB/s) and wait for the slowest'),
  ]);
});

test('missing libraries', () => {
  const { ready, advice } = judge({ ...machine, zeromq: undefined, ggml: undefined }, check(), '');
  expect(ready).toBe(false);
  expect(advice).toHaveLength(2);
});
