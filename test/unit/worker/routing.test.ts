/** Which experts a token gets, computed by hand for each kind of routing. */
import { describe, expect, it } from 'vitest';
import type { ExpertsConfig, RoutingConfig } from '../../../config/model-config.ts';
import { route } from '../../../worker/routing.ts';
import { expectClose } from '../../helpers/expect-close.ts';

const plain: RoutingConfig = {
  scoring: 'softmax',
  biased: false,
  groups: { count: 1, keep: 1, best: 1 },
  normalize: false,
  scale: 1,
};
const experts = (count: number, perToken: number, routing: Partial<RoutingConfig>): ExpertsConfig => ({
  layers: [true],
  count,
  perToken,
  dim: 4,
  sharedDim: 0,
  routing: { ...plain, ...routing },
});
const all = (count: number) => ({ start: 0, end: count });
/** float32 of values computed in float64 */
const ROUNDED = { absolute: 1e-7, relative: 1e-7 };
const softmaxOf = (logits: number[]) => {
  const powers = logits.map((logit) => Math.exp(logit));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
};

describe('route', () => {
  it('softmax: the best, best first, with their scores', () => {
    const logits = [0.1, 2, -1, 1.5];
    const scores = softmaxOf(logits);
    const { slots, ids, shares } = route(Float32Array.from(logits), undefined, experts(4, 2, { scale: 1.5 }), all(4));
    expect([slots, ...ids]).toEqual([2, 1, 3]);
    expectClose(shares, [1.5 * scores[1]!, 1.5 * scores[3]!], ROUNDED);
  });

  it('normalises over the chosen, then scales', () => {
    const { shares } = route(Float32Array.of(0, 1, 2), undefined, experts(3, 2, { normalize: true, scale: 2 }), all(3));
    const e = Math.E;
    expectClose(shares, [(2 * e) / (1 + e), 2 / (1 + e)], ROUNDED);
  });

  it('takes the lower number of two equal scores', () => {
    expect([...route(Float32Array.of(1, 3, 3, 3), undefined, experts(4, 2, {}), all(4)).ids]).toEqual([1, 2]);
  });

  it('groups by their best score: a good expert in a bad group loses', () => {
    // Groups of two: best scores 5, 4, 1; expert 1 (4.5) belongs to the first, expert 4 (1) is out.
    const logits = Float32Array.of(5, 4.5, 4, -9, 1, 0.5);
    const config = experts(6, 3, { groups: { count: 3, keep: 2, best: 1 } });
    expect([...route(logits, undefined, config, all(6)).ids]).toEqual([0, 1, 2]);
    const fewer = experts(6, 2, { groups: { count: 3, keep: 1, best: 1 } });
    expect([...route(Float32Array.of(1, 0, 3, -9, 2, 2.9), undefined, fewer, all(6)).ids]).toEqual([2, 3]);
  });

  it('groups by the sum of their two best, biased; shares without the bias', () => {
    const logits = [0.2, 0.1, 0.9, -3, 0.5, 0.4];
    const bias = Float32Array.of(0, 0, 0, 0, 0.3, 0.1);
    const config = experts(6, 2, {
      scoring: 'sigmoid',
      biased: true,
      groups: { count: 3, keep: 1, best: 2 },
      normalize: true,
      scale: 2.5,
    });
    const { ids, shares } = route(Float32Array.from(logits), bias, config, all(6));
    expect([...ids]).toEqual([4, 5]);
    const [a, b] = [1 / (1 + Math.exp(-0.5)), 1 / (1 + Math.exp(-0.4))];
    expectClose(shares, [(2.5 * a) / (a + b), (2.5 * b) / (a + b)], ROUNDED);
  });

  it('keeps the choices of a rank, counted from its first expert, and fills up with share 0', () => {
    // Token 0 chooses 3 and 2, token 1 chooses 0 and 3.
    const logits = Float32Array.of(0, 1, 2, 3, 3, 0, 1, 2);
    const config = experts(4, 2, { normalize: true });
    const upper = route(logits, undefined, config, { start: 2, end: 4 });
    expect([upper.slots, ...upper.ids]).toEqual([2, 1, 0, 1, 0]);
    expect(upper.shares[3]).toBe(0);
    const lower = route(logits, undefined, config, { start: 0, end: 2 });
    expect([lower.slots, ...lower.ids]).toEqual([1, 0, 0]);
    expect(lower.shares[0]).toBe(0);
    const whole = route(logits, undefined, config, all(4));
    const sum = (shares: Float32Array) => shares.reduce((a, b) => a + b, 0);
    expect(sum(upper.shares) + sum(lower.shares)).toBeCloseTo(sum(whole.shares), 6);
    expect(route(logits.subarray(4), undefined, config, { start: 1, end: 2 }).slots).toBe(0);
  });
});
