import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Restarts } from '../../../coordinator/restarts.ts';

beforeEach(() => void vi.useFakeTimers({ toFake: ['performance'] }));
afterEach(() => void vi.useRealTimers());

const minute = 60_000;

test('waits longer for each attempt of an outage, up to half a minute', () => {
  const restarts = new Restarts({ restarts: 100, backoffMs: 500 });
  expect([0, 1, 2, 3, 9].map((attempt) => restarts.begin(attempt))).toEqual([0, 500, 1000, 2000, 30_000]);
});

test('none is left after as many as allowed, until the first of them is ten minutes ago', () => {
  const restarts = new Restarts({ restarts: 2, backoffMs: 500 });
  restarts.begin(0);
  vi.advanceTimersByTime(4 * minute);
  expect(restarts.isNoneLeft).toBe(false);
  restarts.begin(0);
  expect(restarts.isNoneLeft).toBe(true);
  vi.advanceTimersByTime(5 * minute);
  expect(restarts.isNoneLeft).toBe(true);
  vi.advanceTimersByTime(minute);
  expect(restarts.isNoneLeft).toBe(false);
});

test('another cluster begins anew, and none at all may be allowed', () => {
  const restarts = new Restarts({ restarts: 1, backoffMs: 500 });
  restarts.begin(0);
  restarts.forget();
  expect(restarts.isNoneLeft).toBe(false);
  expect(new Restarts({ restarts: 0, backoffMs: 500 }).isNoneLeft).toBe(true);
});

test('counts for each rank how often it was started again', () => {
  const restarts = new Restarts({ restarts: 5, backoffMs: 500 });
  restarts.succeeded([0, 2]);
  restarts.succeeded([2]);
  expect([0, 1, 2].map((rank) => restarts.of(rank))).toEqual([1, 0, 2]);
});
