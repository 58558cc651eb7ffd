/** Divergence of predictions against a closed form, and its summaries. */
import { expect, test } from 'vitest';
import { divergenceOf, summarise } from '../../../../coordinator/eval/divergence.ts';

test('the divergence of two distributions, for logits of any offset', () => {
  const p = [0.5, 0.25, 0.25];
  const q = [0.2, 0.3, 0.5];
  const logits = (of: number[], offset: number): number[] => of.map((value) => Math.log(value) + offset);
  const reference = Float32Array.from([...logits(p, 3), ...logits(q, 0)]);
  const tested = Float32Array.from([...logits(q, -5), ...logits(q, 7)]);
  const { kl, agrees } = divergenceOf(reference, tested, 3);
  const expected = p.reduce((sum, value, i) => sum + value * Math.log(value / q[i]!), 0);
  expect(kl[0]).toBeCloseTo(expected, 6);
  expect(kl[1]).toBeLessThan(1e-6);
  expect(agrees).toEqual([false, true]);
});

test('summaries: mean, the value that 99 of 100 are not above, agreement', () => {
  const kl = Array.from({ length: 200 }, (_, i) => 199 - i);
  const agrees = kl.map((value) => value < 150);
  expect(summarise(kl, agrees)).toEqual({ positions: 200, mean: 99.5, p99: 197, top1Agreement: 0.75 });
});
