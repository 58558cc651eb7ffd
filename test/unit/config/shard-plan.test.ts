/** Who holds what: everything exactly once, whatever the sizes, shares and numbers of ranks. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ConfigError } from '../../../config/errors.ts';
import type { ModelConfig } from '../../../config/model-config.ts';
import { heldPositions, planShards, size, type PlanRequest } from '../../../config/shard-plan.ts';
import { expectEachOnce, gqaModel, mlaModel } from './plan-models.ts';

const share = fc.integer({ min: 1, max: 9 });
const blockSize = fc.constantFrom(1, 32, 256);

/** A model, and a request that fits it. */
const gqaCase = fc
  .record({
    model: fc
      .tuple(
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 1, max: 700 }),
        fc.integer({ min: 1, max: 700 }),
      )
      .map((dims) => gqaModel(...dims)),
    shares: fc.array(share, { minLength: 1, maxLength: 12 }),
    blockSize,
  })
  .map(({ model, shares, blockSize }) => ({
    model,
    request: { worldSize: shares.length, scheme: 'gqa', latentGroups: 1, blockSize, shares } satisfies PlanRequest,
  }));

const tplaCase = fc
  .record({
    numHeads: fc.integer({ min: 1, max: 20 }),
    groups: fc.integer({ min: 1, max: 5 }),
    places: fc.integer({ min: 1, max: 4 }),
    extraLatent: fc.integer({ min: 0, max: 40 }),
    blockSize,
  })
  .chain((dims) =>
    fc.array(share, { minLength: dims.groups * dims.places, maxLength: dims.groups * dims.places }).map((shares) => ({
      model: mlaModel(dims.numHeads, shares.length + dims.extraLatent),
      request: {
        worldSize: shares.length,
        scheme: 'tpla',
        latentGroups: dims.groups,
        blockSize: dims.blockSize,
        shares,
      } satisfies PlanRequest,
    })),
  );

describe('planShards', () => {
  test('gqa: every head, feed-forward column and vocabulary row lies on exactly one rank', () => {
    fc.assert(
      fc.property(gqaCase, ({ model, request }) => {
        const { ranks } = planShards(model, request);
        expect(ranks.map((rank) => rank.rank)).toEqual(request.shares.map((_, rank) => rank));
        expectEachOnce(
          ranks.map((rank) => rank.heads),
          model.numHeads,
        );
        expectEachOnce(
          ranks.map((rank) => rank.prefillHeads),
          model.numHeads,
        );
        expectEachOnce(
          ranks.map((rank) => rank.feedForward),
          model.feedForward.dim,
        );
        expectEachOnce(
          ranks.map((rank) => rank.vocab),
          model.vocabSize,
        );
        expect(ranks.every((rank) => size(rank.latent) === 0)).toBe(true);
      }),
      { seed: 1, numRuns: 200 },
    );
  });

  test('gqa: the KV heads of a rank are exactly those that its query heads read', () => {
    fc.assert(
      fc.property(gqaCase, ({ model, request }) => {
        if (model.attention.kind !== 'gqa') return;
        const { numKvHeads } = model.attention;
        for (const { heads, kvHeads } of planShards(model, request).ranks) {
          const read = new Set<number>();
          for (let h = heads.start; h < heads.end; h++) read.add(Math.floor((h * numKvHeads) / model.numHeads));
          const held = Array.from({ length: size(kvHeads) }, (_, i) => kvHeads.start + i);
          expect(held).toEqual([...read]);
        }
      }),
      { seed: 2, numRuns: 200 },
    );
  });

  test('tpla: each latent group covers the latent once and, within the group, every head once', () => {
    fc.assert(
      fc.property(tplaCase, ({ model, request }) => {
        if (model.attention.kind !== 'mla') return;
        const { ranks, latentGroups } = planShards(model, request);
        const places = request.worldSize / latentGroups;
        for (let place = 0; place < places; place++)
          expectEachOnce(
            ranks.filter(({ rank }) => rank % places === place).map((rank) => rank.latent),
            model.attention.latentDim,
          );
        for (let group = 0; group < latentGroups; group++)
          expectEachOnce(
            ranks.slice(group * places, (group + 1) * places).map((rank) => rank.heads),
            model.numHeads,
          );
      }),
      { seed: 3, numRuns: 200 },
    );
  });

  test('tpla: over all ranks every head is prefilled once, by a rank that also has it in decode', () => {
    fc.assert(
      fc.property(tplaCase, ({ model, request }) => {
        const { ranks } = planShards(model, request);
        expectEachOnce(
          ranks.map((rank) => rank.prefillHeads),
          model.numHeads,
        );
        for (const { heads, prefillHeads } of ranks) {
          expect(prefillHeads.start).toBeGreaterThanOrEqual(heads.start);
          expect(prefillHeads.end).toBeLessThanOrEqual(heads.end);
        }
      }),
      { seed: 4, numRuns: 200 },
    );
  });

  test('tpla-exact: every rank has all heads, and latent and rotary key lie on the ranks once', () => {
    const plan = planShards(mlaModel(9, 30), { worldSize: 4, scheme: 'tpla-exact', latentGroups: 4, blockSize: 1 });
    expect(plan.ranks.map((rank) => size(rank.heads))).toEqual([9, 9, 9, 9]);
    expectEachOnce(
      plan.ranks.map((rank) => rank.latent),
      30,
    );
    expectEachOnce(
      plan.ranks.map((rank) => rank.ropeKey),
      8,
    );
  });

  test('gla: every head lies on one rank, with the latent columns of its group', () => {
    const plan = planShards(mlaModel(9, 30), { worldSize: 4, scheme: 'gla', latentGroups: 2, blockSize: 1 });
    expectEachOnce(
      plan.ranks.map((rank) => rank.heads),
      9,
    );
    expect(plan.ranks.map((rank) => rank.latent.start)).toEqual([0, 0, 15, 15]);
    expect(plan.ranks.map((rank) => rank.prefillHeads)).toEqual(plan.ranks.map((rank) => rank.heads));
  });

  test('dcp: each rank has all heads and the whole latent, merges some heads and holds some positions', () => {
    const plan = planShards(mlaModel(9, 30), { worldSize: 4, scheme: 'dcp', latentGroups: 1, blockSize: 1 });
    expect(plan.ranks.map((rank) => [size(rank.heads), size(rank.latent), size(rank.ropeKey)])).toEqual(
      new Array(4).fill([9, 30, 8]),
    );
    expectEachOnce(
      plan.ranks.map((rank) => rank.prefillHeads),
      9,
    );
    for (let length = 0; length < 300; length++) {
      const held = plan.ranks.map((rank) => heldPositions(rank.positions, length));
      expect(held.reduce((sum, count) => sum + count, 0)).toBe(length);
      expect(Math.max(...held) - Math.min(...held)).toBeLessThanOrEqual(16);
      // Consecutive blocks: the next position goes to one rank, as its next row.
      const next = plan.ranks.filter((rank) => heldPositions(rank.positions, length + 1) > (held[rank.rank] ?? 0));
      expect(next.map((rank) => rank.rank)).toEqual([Math.floor(length / 16) % 4]);
    }
  });

  test('9 heads and 3 KV heads on 4 ranks: a KV head whose readers are split is held twice', () => {
    const plan = planShards(gqaModel(3, 3, 12, 8), { worldSize: 4, scheme: 'gqa', latentGroups: 1, blockSize: 1 });
    expect(plan.ranks.map((rank) => rank.heads)).toEqual([
      { start: 0, end: 3 },
      { start: 3, end: 5 },
      { start: 5, end: 7 },
      { start: 7, end: 9 },
    ]);
    expect(plan.ranks.map((rank) => rank.kvHeads)).toEqual([
      { start: 0, end: 1 },
      { start: 1, end: 2 },
      { start: 1, end: 3 },
      { start: 2, end: 3 },
    ]);
  });

  test('more ranks than heads: some ranks have none, and no KV head either', () => {
    const plan = planShards(gqaModel(1, 2, 64, 64), { worldSize: 5, scheme: 'gqa', latentGroups: 1, blockSize: 32 });
    expect(plan.ranks.map((rank) => size(rank.heads)).sort((a, b) => a - b)).toEqual([0, 0, 0, 1, 1]);
    expect(plan.ranks.filter((rank) => size(rank.heads) === 0).every((rank) => size(rank.kvHeads) === 0)).toBe(true);
    expect(plan.ranks.map((rank) => size(rank.feedForward)).sort((a, b) => a - b)).toEqual([0, 0, 0, 32, 32]);
  });

  const refusals: [string, ModelConfig, Partial<PlanRequest>, string][] = [
    [
      'more ranks than latent columns',
      mlaModel(40, 32),
      { worldSize: 40, scheme: 'tpla', latentGroups: 40 },
      'ranks: 40 ranks cannot share a latent of 32 columns; use at most 32',
    ],
    [
      'groups that do not divide the ranks',
      mlaModel(8, 32),
      { worldSize: 4, scheme: 'tpla', latentGroups: 3 },
      'latentGroups: 3 does not divide worldSize 4; use 1, 2, 4',
    ],
    [
      'a latent scheme for a model without latent',
      gqaModel(2, 2, 8, 8),
      { worldSize: 2, scheme: 'tpla', latentGroups: 2 },
      'scheme: tpla needs a latent cache, but this test model is GQA; convert it first (tpla convert) or use --scheme gqa',
    ],
    [
      'gqa for a latent model',
      mlaModel(8, 32),
      { worldSize: 2, scheme: 'gqa', latentGroups: 1 },
      'scheme: gqa needs a key-value cache per head, but this model is MLA; use mla, dcp or tpla',
    ],
    [
      'groups where the latent is whole',
      mlaModel(8, 32),
      { worldSize: 2, scheme: 'mla', latentGroups: 2 },
      'latentGroups: 2 has no meaning for scheme mla; leave it out or use scheme tpla',
    ],
    [
      'tpla-exact with fewer groups than ranks',
      mlaModel(8, 32),
      { worldSize: 4, scheme: 'tpla-exact', latentGroups: 2 },
      'latentGroups: scheme tpla-exact cuts the latent over all 4 ranks, got 2; leave it out or use 4',
    ],
    [
      'exact tokens in a scheme that is exact',
      mlaModel(8, 32),
      { scheme: 'dcp', exactTokens: { sinks: 4, window: 64 } },
      'window: exact attention to some tokens (window 64, sinks 4) is for scheme tpla, not for dcp; leave both out',
    ],
    ['no ranks', mlaModel(8, 32), { worldSize: 0 }, 'ranks: expected a whole number from 1 to 64, got 0'],
    ['too many ranks', mlaModel(8, 32), { worldSize: 65 }, 'ranks: expected a whole number from 1 to 64, got 65'],
  ];
  test.each(refusals)('refuses %s', (_, model, request, message) => {
    const whole: PlanRequest = { worldSize: 2, scheme: 'mla', latentGroups: 1, blockSize: 1, ...request };
    expect(() => planShards(model, whole)).toThrow(new ConfigError(message));
  });
});
