import { expect, test } from 'vitest';
import type { RankCheck } from '../../../../coordinator/doctor/check-ranks.ts';
import { judge } from '../../../../coordinator/doctor/verdict.ts';
import { describeMachine } from '../../../../coordinator/machine.ts';

const machine = { ...describeMachine(), host: 'here', cores: 2, zeromq: '6', ggml: '3', gpujs: '2', curve: true };

function check(changes: Partial<RankCheck> = {}): RankCheck {
  const rank = {
    host: 'here',
    device: 'a core',
    gigabytesPerSecond: 10,
    gigaflopsPerSecond: 40,
    weightBytes: 1e8,
    fullCacheBytes: 1e8,
    freeMemoryBytes: 4e9,
    memoryBytes: 8e9,
  };
  const sums = { floats: 576, count: 10, p50Us: 5, p99Us: 9 };
  return {
    scheme: 'gqa',
    transport: 'shared memory',
    threads: 1,
    numLayers: 30,
    hiddenDim: 576,
    links: [],
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

test('a cache that does not fit the free memory is no cluster', () => {
  const ranks = check().ranks.map((rank) => ({ ...rank, fullCacheBytes: 3e9 }));
  const { ready, advice } = judge(machine, check({ ranks }), '');
  expect(ready).toBe(false);
  expect(advice).toEqual([
    'here: a full cache of rank 0, 1 needs 6.0 GB beside the weights, 4.0 GB are free: lower --context or cache.slots, or put ranks on other machines',
  ]);
});

test('the memory of each host counts by itself', () => {
  const ranks = check().ranks.map((rank) => ({ ...rank, fullCacheBytes: 3e9, host: `host${rank.rank}` }));
  expect(judge(machine, check({ ranks, transport: 'zeromq' }), '').ready).toBe(true);
  const [first, second] = ranks;
  const { ready, advice } = judge(machine, check({ ranks: [first!, { ...second!, freeMemoryBytes: 2e9 }] }), '');
  expect(ready).toBe(false);
  expect(advice).toEqual([expect.stringMatching(/^host1: a full cache of rank 1 needs 3.0 GB/)]);
});

test('a late or thin link is named, with what it costs', () => {
  const ranks = check().ranks.map((rank) => ({ ...rank, host: `host${rank.rank}` }));
  const link = { from: 0, to: 1, latencyUs: 500, megabytesPerSecond: 110 };
  const control = { from: null, to: 1, latencyUs: 9000, megabytesPerSecond: 1 };
  expect(judge(machine, check({ ranks, links: [control, link] }), '').advice).toEqual([
    'the link from rank 0 (host0) to rank 1 (host1) takes 500 us one way, and each generated token waits for it 60 times, 30 ms in all: use a faster network, or fewer machines',
  ]);
  // 60 sums of 576 floats, of which 2 ranks send each once: 138 kB per token.
  expect(
    judge(machine, check({ ranks, links: [{ ...link, latencyUs: 50, megabytesPerSecond: 12 }] }), '').advice,
  ).toEqual([
    'the link from rank 0 (host0) to rank 1 (host1) carries 12 MB/s: prompts are read at 87 tokens/s at most; use a faster network, or fewer machines',
  ]);
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
