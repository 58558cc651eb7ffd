/** Compares arrays of numbers within a tolerance and, where they differ, says how much and where. */
import { expect } from 'vitest';
import type { Tolerance } from './tolerances.ts';

/** Fails with the maximum and mean error, the worst index and both values; NaN never passes, equal infinities do. */
export function expectClose(actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance: Tolerance): void {
  if (actual.length !== expected.length) {
    expect.fail(`${actual.length} values, expected ${expected.length}`);
  }
  let failures = 0;
  let worstIndex = 0;
  let worstExcess = -Infinity;
  let maxError = 0;
  let sumError = 0;
  for (let i = 0; i < expected.length; i++) {
    const error = Object.is(actual[i], expected[i]) ? 0 : Math.abs(actual[i]! - expected[i]!);
    const limit = tolerance.absolute + tolerance.relative * Math.abs(expected[i]!);
    const excess = Number.isNaN(error) ? Infinity : error - limit;
    if (excess > 0) failures++;
    if (excess > worstExcess) {
      worstExcess = excess;
      worstIndex = i;
    }
    maxError = Number.isNaN(error) ? Infinity : Math.max(maxError, error);
    sumError += error;
  }
  if (failures === 0) return;
  expect.fail(
    `${failures} of ${expected.length} values are off: max error ${maxError.toExponential(2)}, ` +
      `mean error ${(sumError / expected.length).toExponential(2)}, worst at ${worstIndex}: ` +
      `${actual[worstIndex]}, expected ${expected[worstIndex]} ` +
      `(tolerance ${tolerance.absolute} + ${tolerance.relative} * |expected|)`,
  );
}
