/**
 * Runs the feed-forward of layers that route: a program for the router's logits, the choice on the host (routing.ts),
 * a program for the experts chosen. Programs depend on the number of tokens and of experts per token only. On a rank
 * that holds some experts whole, a decode step computes just those of its experts that were chosen.
 */
import { invariant } from '../config/errors.ts';
import type { RankPlan } from '../config/shard-plan.ts';
import { routedDelta } from './feed-forward.ts';
import type { Kernels, ProgramSet, Tensor } from './kernels/kernels.ts';
import { normed } from './layer.ts';
import { ProgramCache } from './program-cache.ts';
import { bytesOf, type RankParts } from './rank-parts.ts';
import { route, type Routes } from './routing.ts';
import type { LayerWeights } from './weights.ts';

/** What experts need of a rank. */
export interface ExpertParts extends Pick<RankParts, 'kernels' | 'model'> {
  readonly weights: { readonly layers: readonly Pick<LayerWeights, 'routed' | 'feedForwardNorm'>[] };
}

export class RoutedExperts implements Disposable {
  private readonly parts: ExpertParts;
  private readonly rank: RankPlan;
  private readonly routers = new ProgramCache<RouterPrograms>(4);
  private readonly experts = new ProgramCache<ExpertPrograms>(12);

  constructor(parts: ExpertParts, rank: RankPlan) {
    this.parts = parts;
    this.rank = rank;
  }

  /** @param x [tokens, hidden]  @param delta [tokens, hidden], overwritten with this rank's part */
  run(layer: number, x: Float32Array, delta: Float32Array): void {
    const { model, weights } = this.parts;
    const routed = weights.layers[layer]?.routed;
    invariant(model.experts !== null && routed !== undefined, `layer ${layer} has no experts`);
    const tokens = x.length / model.hiddenDim;
    const router = this.routers.get(`${tokens}`, () => new RouterPrograms(this.parts, tokens));
    const logits = router.run(layer, x);
    const choice = route(logits, routed.routerBias, model.experts, this.rank.experts);
    const { slots } = choice;
    const programs = this.experts.get(`${tokens} ${slots}`, () => new ExpertPrograms(this.parts, tokens, slots));
    programs.run(layer, x, choice, delta);
  }

  [Symbol.dispose](): void {
    this.routers[Symbol.dispose]();
    this.experts[Symbol.dispose]();
  }
}

/** One program per layer: logits of every expert. */
class RouterPrograms implements Disposable {
  private readonly kernels: Kernels;
  private readonly x: Tensor; // [tokens, hidden]
  private readonly logits: Float32Array; // [tokens, experts]
  private readonly set: ProgramSet;

  constructor({ kernels, model, weights }: ExpertParts, tokens: number) {
    this.kernels = kernels;
    this.x = kernels.allocate('f32', [tokens, model.hiddenDim]);
    this.logits = new Float32Array(tokens * (model.experts?.count ?? 0));
    this.set = kernels.compile(
      weights.layers.map(
        ({ routed, feedForwardNorm }) =>
          (ops) =>
            routed === undefined
              ? []
              : [ops.matmul(routed.router, normed(ops, this.x, feedForwardNorm, model.normEps))],
      ),
    );
  }

  /** @param x [tokens, hidden]  @returns [tokens, experts], overwritten by the next run */
  run(layer: number, x: Float32Array): Float32Array {
    const output = this.set.outputs[layer]?.[0];
    invariant(output !== undefined, `layer ${layer} has no router`);
    this.kernels.upload(this.x, bytesOf(x));
    this.set.run(layer);
    this.kernels.download(output, this.logits);
    return this.logits;
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.kernels.release([this.x]);
  }
}

/** One program per layer: this rank's part of the experts chosen and of the shared ones. */
class ExpertPrograms implements Disposable {
  private readonly kernels: Kernels;
  private readonly x: Tensor; // [tokens, hidden]
  private readonly choice: { readonly ids: Tensor; readonly shares: Tensor } | undefined; // [tokens, slots]
  private readonly set: ProgramSet;

  constructor({ kernels, model, weights }: ExpertParts, tokens: number, slots: number) {
    this.kernels = kernels;
    this.x = kernels.allocate('f32', [tokens, model.hiddenDim]);
    this.choice =
      slots === 0
        ? undefined
        : { ids: kernels.allocate('i32', [tokens, slots]), shares: kernels.allocate('f32', [tokens, slots]) };
    this.set = kernels.compile(
      weights.layers.map(({ routed, feedForwardNorm }) => (ops) => {
        if (routed === undefined) return [];
        const h = normed(ops, this.x, feedForwardNorm, model.normEps);
        const delta = routedDelta(ops, model, routed, h, this.choice);
        return delta === undefined ? [] : [delta];
      }),
    );
  }

  run(layer: number, x: Float32Array, { ids, shares }: Routes, delta: Float32Array): void {
    const output = this.set.outputs[layer]?.[0];
    if (output === undefined) {
      delta.fill(0);
      return;
    }
    this.kernels.upload(this.x, bytesOf(x));
    if (this.choice !== undefined) {
      this.kernels.upload(this.choice.ids, bytesOf(ids));
      this.kernels.upload(this.choice.shares, bytesOf(shares));
    }
    this.set.run(layer);
    this.kernels.download(output, delta);
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.kernels.release([this.x, ...(this.choice === undefined ? [] : [this.choice.ids, this.choice.shares])]);
  }
}
