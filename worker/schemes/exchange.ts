/**
 * Attention that talks to the other ranks in its middle: a first program per layer, an exchange of its outputs, a second
 * program that yields the partial delta. Schemes without one (gqa, mla, tpla, gla) take attention.ts as it is.
 * Read next: summed-scores.ts (tpla-exact), dealt-positions.ts (dcp).
 */
import type { RankPlan, ShardPlan } from '../../config/shard-plan.ts';
import type { ProcessGroup } from '../../collective/group.ts';
import type { AttentionInputs } from '../attention-inputs.ts';
import type { Chunk } from '../chunks.ts';
import type { Ops, Tensor } from '../kernels/kernels.ts';
import type { LayerCache } from '../latent-cache.ts';
import type { LayerWeights } from '../weights.ts';

/** One for each shape of chunk; its buffers serve all layers. */
export interface Exchange extends Disposable {
  /** Records the first program. @param x [tokens, hidden]  @returns what `run` downloads */
  before(ops: Ops, weights: LayerWeights, cache: LayerCache, x: Tensor, inputs: AttentionInputs): readonly Tensor[];
  /** Records the second program. @returns partial delta [tokens, hidden]; undefined: this rank has no part in it */
  after(ops: Ops, weights: LayerWeights, cache: LayerCache, inputs: AttentionInputs): Tensor | undefined;
  /** Called before the first layer of each chunk. */
  load(chunk: Chunk): void;
  /** From the outputs of the first program to the inputs of the second. */
  run(outputs: readonly Tensor[], label: string): Promise<void>;
}

/** How this rank takes part in the group. */
export interface RankSeat {
  readonly plan: ShardPlan;
  readonly rank: RankPlan;
  readonly group: ProcessGroup;
}
