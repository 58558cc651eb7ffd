import { describe, expect, it } from 'vitest';
import { ropeTable, yarnMscale } from '../../../model/rope.ts';

describe('ropeTable', () => {
  it('none: powers of the base', () => {
    const { frequencies, attentionFactor } = ropeTable(10000, 8, { kind: 'none' });
    [1, 0.1, 0.01, 0.001].forEach((expected, i) => expect(frequencies[i]).toBeCloseTo(expected, 14));
    expect(attentionFactor).toBe(1);
  });

  it('linear: all divided', () => {
    expect(ropeTable(10000, 4, { kind: 'linear', factor: 4 }).frequencies).toEqual([0.25, 0.0025]);
  });

  // With these numbers the logits of test/golden/tiny/llama3-rope-scaling come out within 3e-6.
  it('llama3: kept, mixed and divided', () => {
    const { frequencies } = ropeTable(10000, 16, {
      kind: 'llama3',
      factor: 8,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalContext: 64,
    });
    const expected = [1, 0.24438459943539834, 0.013042256043820465, 0.003952847075210474, 0.00125];
    expected.forEach((value, i) => expect(frequencies[i]).toBeCloseTo(value, 14));
    expect(frequencies.at(-1)).toBeCloseTo(10000 ** (-14 / 16) / 8, 14);
  });

  const yarn = {
    kind: 'yarn',
    factor: 4,
    originalContext: 128,
    betaFast: 32,
    betaSlow: 1,
    attentionFactor: yarnMscale(4, 1),
    truncate: true,
  } as const;

  // With these numbers the logits of test/golden/tiny/llama-yarn come out within 3e-6.
  it('yarn: a ramp from kept to divided', () => {
    const { frequencies, attentionFactor } = ropeTable(10000, 32, yarn);
    const expected = [1, 0.4920486595415554, 0.23717082451262847, 0.11114246312743267, 0.05, 0.021087799694638087];
    expected.forEach((value, i) => expect(frequencies[i]).toBeCloseTo(value, 14));
    expect(frequencies.at(-1)).toBeCloseTo(10000 ** (-30 / 32) / 4, 14);
    expect(attentionFactor).toBeCloseTo(1.138629436111989, 14);
  });

  it('yarn with equal bounds has a step', () => {
    const { frequencies } = ropeTable(10000, 32, { ...yarn, betaFast: 1, betaSlow: 1, truncate: false });
    const stretched = frequencies.map((frequency, i) => 10000 ** ((-2 * i) / 32) / frequency);
    expect(stretched.every((ratio) => Math.abs(ratio - 1) < 1e-9 || Math.abs(ratio - 4) < 1e-9)).toBe(true);
    expect(new Set(stretched.map((ratio) => Math.round(ratio)))).toEqual(new Set([1, 4]));
  });

  it('divisors: one for each frequency', () => {
    const { frequencies } = ropeTable(10000, 4, { kind: 'divisors', divisors: [2, 8] });
    expect(frequencies).toEqual([0.5, 0.01 / 8]);
  });
});

describe('yarnMscale', () => {
  it('is 1 where nothing is stretched', () => {
    expect(yarnMscale(1, 1)).toBe(1);
    expect(yarnMscale(0.5, 1)).toBe(1);
    expect(yarnMscale(40, 0.707)).toBeCloseTo(0.1 * 0.707 * Math.log(40) + 1, 14);
  });
});
