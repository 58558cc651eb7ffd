/**
 * The experts of one layer at a time, for calibration: every rank has them all and runs the tokens of its windows, with
 * the programs and the choice of the runtime. The weights stay as the file stores them where the backend can compute
 * with that. Read next: ../routed-experts.ts.
 */
import { invariant } from '../../config/errors.ts';
import { planShards, type RankPlan } from '../../config/shard-plan.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import type { Backend } from '../backend.ts';
import { loadFeedForward, type FeedForwardWeights, type RoutedWeights } from '../feed-forward.ts';
import type { Tensor } from '../kernels/kernels.ts';
import { RoutedExperts } from '../routed-experts.ts';
import { WeightUploader } from '../weight-uploader.ts';

export class RoutedPart implements Disposable {
  private readonly checkpoint: Checkpoint;
  private readonly backend: Backend;
  private readonly rank: RankPlan;
  private loaded: { readonly experts: RoutedExperts; readonly tensors: readonly Tensor[] } | undefined;

  constructor(checkpoint: Checkpoint, backend: Backend) {
    this.checkpoint = checkpoint;
    this.backend = backend;
    const request = { worldSize: 1, scheme: 'gqa', latentGroups: 1, blockSize: 1 } as const;
    const [rank] = planShards(checkpoint.config, request).ranks;
    invariant(rank !== undefined, 'a plan for one rank has none');
    this.rank = rank;
  }

  /** @param feedForwardNorm [D] the layer's, already loaded */
  async load(layer: number, feedForwardNorm: Tensor): Promise<void> {
    this[Symbol.dispose]();
    const { kernels, quantize } = this.backend;
    const model = this.checkpoint.config;
    const uploader = new WeightUploader(this.checkpoint, kernels, 'keep', quantize);
    const { routed } = await loadFeedForward(model, this.rank, uploader, layer);
    invariant(routed !== undefined, `layer ${layer} has no experts`);
    const weights = { layers: [{ routed, feedForwardNorm }] };
    this.loaded = { experts: new RoutedExperts({ kernels, model, weights }, this.rank), tensors: tensorsOf(routed) };
  }

  /** @param x [T, D] the stream behind attention  @param delta [T, D] overwritten */
  run(x: Float32Array, delta: Float32Array): void {
    invariant(this.loaded !== undefined, 'experts were not loaded');
    this.loaded.experts.run(0, x, delta);
  }

  [Symbol.dispose](): void {
    this.loaded?.experts[Symbol.dispose]();
    this.backend.kernels.release(this.loaded?.tensors ?? []);
    this.loaded = undefined;
  }
}

function tensorsOf({ router, experts, shared }: RoutedWeights): Tensor[] {
  const three = (weights: FeedForwardWeights | undefined): Tensor[] =>
    weights === undefined ? [] : [weights.gate, weights.up, weights.down];
  return [router, ...three(experts), ...three(shared)];
}
