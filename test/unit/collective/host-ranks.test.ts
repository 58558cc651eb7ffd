import { expect, it } from 'vitest';
import { hostRanksOf, ranksBeside } from '../../../collective/host-ranks.ts';

it.each([
  ['aaa', [[0, 1, 2]], [0, 0, 0]],
  [
    'abab',
    [
      [0, 2],
      [1, 3],
    ],
    [0, 1, 0, 1],
  ],
  ['cab', [[0], [1], [2]], [0, 1, 2]],
])('ranks on hosts %s: hosts in the order of their first ranks', (names, ranks, hostOf) => {
  const hosts = names.split('');
  expect(hostRanksOf(hosts)).toEqual({ ranks, hostOf });
  hosts.forEach((_, rank) => expect(ranksBeside(rank, hosts)).toEqual(ranks.find((each) => each.includes(rank))));
});
