import { describe, expect, it } from 'vitest';
import { type ModelConfig, plainFeatures } from '../../../../config/model-config.ts';
import { convertibleAttention } from '../../../../model/transmla/read-layer.ts';

const plain = {
  architecture: 'some',
  hiddenDim: 8,
  numLayers: 2,
  numHeads: 4,
  vocabSize: 10,
  contextLength: 16,
  normEps: 1e-6,
  attention: { kind: 'gqa', numKvHeads: 2, headDim: 4, scoreScale: 0.5, scoreSoftcap: 0, headNorms: false },
  rope: { frequencies: [1, 0.1], attentionFactor: 1, interleaved: false },
  feedForward: { kind: 'gated', dim: 8, activation: 'silu' },
  tiedEmbeddings: true,
  ...plainFeatures,
} satisfies ModelConfig;

describe('convertibleAttention', () => {
  it('takes plain grouped-query attention', () => {
    expect(convertibleAttention(plain)).toBe(plain.attention);
  });

  it.each<Partial<ModelConfig>>([
    { attention: { ...plain.attention, scoreSoftcap: 50 } },
    { slidingWindows: [0, 8] },
    { postNorms: true },
    { embeddingScale: 2, logitSoftcap: 30 },
  ])('takes %j, which a latent layer can have too', (features) => {
    const config = { ...plain, ...features };
    expect(convertibleAttention(config)).toBe(config.attention);
  });

  it.each<[Partial<ModelConfig>, string]>([
    [{ attention: { ...plain.attention, headNorms: true } }, 'norms queries and keys per head and token before RoPE'],
    [{ attention: { ...plain.attention, numKvHeads: 3 } }, '4 query heads, no multiple of its 3 KV heads'],
  ])('refuses %j by name', (features, text) => {
    expect(() => convertibleAttention({ ...plain, ...features })).toThrow(`convert: this some model`);
    expect(() => convertibleAttention({ ...plain, ...features })).toThrow(text);
  });
});
