import { expect, it } from 'vitest';
import { cellsOfValues } from '../../../worker/value-cache.ts';

it('places the numbers of each token one row apart, slots after one another', () => {
  // 2 slots of 4 rows, 3 numbers per token: rows 1 and 2 of slot 0, row 3 of slot 1.
  expect([...cellsOfValues([1, 2, 7], 4, 3)]).toEqual([1, 5, 9, 2, 6, 10, 12 + 3, 12 + 7, 12 + 11]);
  expect(cellsOfValues([], 4, 3)).toHaveLength(0);
});
