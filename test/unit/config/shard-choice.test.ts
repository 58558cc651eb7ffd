/** How numbers are cut into shares, and which scheme a model gets. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { ModelConfig } from '../../../config/model-config.ts';
import { chooseScheme, defaultLatentGroups, validLatentGroups, type Scheme } from '../../../config/schemes.ts';
import { cut, size, type ShardPlan } from '../../../config/shard-plan.ts';
import { expectEachOnce, gqaModel, mlaModel } from './plan-models.ts';

const share = fc.integer({ min: 1, max: 9 });
const blockSize = fc.constantFrom(1, 32, 256);

describe('cut', () => {
  test('gives consecutive ranges in proportion, bounds at whole blocks, within one block of the exact share', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 5000 }),
        fc.array(share, { minLength: 1, maxLength: 12 }),
        blockSize,
        (total, shares, block) => {
          const ranges = cut(total, shares, block);
          expectEachOnce(ranges, total);
          const sum = shares.reduce((a, b) => a + b, 0);
          let cumulated = 0;
          for (const [i, { end }] of ranges.entries()) {
            cumulated += shares[i] ?? 0;
            if (end !== total) expect(end % block).toBe(0);
            expect(Math.abs(end - Math.min(total, (cumulated / sum) * Math.ceil(total / block) * block))).toBeLessThan(
              block + 1,
            );
          }
        },
      ),
      { seed: 5, numRuns: 300 },
    );
  });

  test('thirds of a number that three divides are equal', () => {
    expect(cut(9, [1 / 3, 1 / 3, 1 / 3], 1).map(size)).toEqual([3, 3, 3]);
  });
});

test('validLatentGroups are the divisors', () => {
  expect(validLatentGroups(12)).toEqual([1, 2, 3, 4, 6, 12]);
});

test.each<[Scheme, number, number]>([
  ['mla', 4, 1],
  ['gqa', 4, 1],
  ['dcp', 4, 1],
  ['tpla', 4, 4],
  ['tpla-exact', 4, 4],
  ['gla', 4, 4],
])('%s on %i ranks has %i latent groups unless told otherwise', (scheme, worldSize, groups) => {
  expect(defaultLatentGroups(scheme, worldSize)).toBe(groups);
});

test('auto for a latent model on several hosts', () => {
  expect(chooseScheme(mlaModel(8, 32), 2, false).scheme).toBe('tpla');
});

test.each<[string, ModelConfig, number, ShardPlan['scheme']]>([
  ['a model without latent', gqaModel(2, 2, 8, 8), 4, 'gqa'],
  ['a latent model on one rank', mlaModel(8, 32), 1, 'mla'],
  ['a latent model on several of one host', mlaModel(8, 32), 3, 'dcp'],
])('auto for %s', (_, model, worldSize, scheme) => {
  expect(chooseScheme(model, worldSize, true).scheme).toBe(scheme);
});
