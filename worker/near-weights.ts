/** The source's W_K and W_V, of the KV heads that this rank reads, for near tokens. Read next: schemes/near-heads.ts. */
import type { MlaConfig, NearTokens } from '../config/model-config.ts';
import { size, times, type Range, type RankPlan, type ShardPlan } from '../config/shard-plan.ts';
import type { Tensor } from './kernels/kernels.ts';
import type { WeightUploader } from './weight-uploader.ts';

export interface NearWeights {
  readonly key: Tensor; // [localKvHeads * d, hidden]
  readonly keyBias: Tensor | undefined; // [localKvHeads * d]
  readonly value: Tensor; // [localKvHeads * d, hidden]
  /** Less the mean value, which the output's bias has for all tokens. [localKvHeads * d] */
  readonly valueBias: Tensor | undefined;
  /** What a mean key adds to all scores by latents; undefined: keys are not centred. [localHeads, 1, n] */
  readonly slope: Tensor | undefined;
  readonly frequencies: Tensor; // [d / 2]
  /** Part of what near tokens give that this rank adds in decode: those that cut the latent share the heads. */
  readonly share: number;
  /** Which local KV head each of some heads reads, as runs; heads and runs counted from the first local head and the first given one. */
  readonly queriesOfKvHead: (heads: Range) => readonly { readonly kvHead: number; readonly queries: Range }[];
}

export async function loadNear(
  { nopeDim: headDim }: MlaConfig,
  { numKvHeads, frequencies }: NearTokens,
  numHeads: number,
  plan: ShardPlan,
  rank: RankPlan,
  uploader: WeightUploader,
  layer: number,
): Promise<NearWeights> {
  const rows = times(rank.kvHeads, headDim);
  const queriesPerKvHead = numHeads / numKvHeads;
  return {
    key: await uploader.matrix('key', layer, rows),
    keyBias: await uploader.optionalVector('keyBias', layer, rows),
    value: await uploader.matrix('value', layer, rows),
    valueBias: await uploader.optionalVector('valueBias', layer, rows),
    slope: await slopeOf(rank, headDim, uploader, layer),
    frequencies: uploader.values(Float32Array.from(frequencies)),
    share: plan.scheme === 'gla' ? 1 : 1 / plan.latentGroups,
    queriesOfKvHead: (heads) =>
      Array.from({ length: size(rank.kvHeads) }, (_, kvHead) => {
        const first = (rank.kvHeads.start + kvHead) * queriesPerKvHead - rank.heads.start - heads.start;
        const inside = (head: number): number => Math.min(Math.max(head, 0), size(heads));
        return { kvHead, queries: { start: inside(first), end: inside(first + queriesPerKvHead) } };
      }).filter(({ queries }) => size(queries) > 0),
  };
}

async function slopeOf(
  { heads }: RankPlan,
  headDim: number,
  uploader: WeightUploader,
  layer: number,
): Promise<Tensor | undefined> {
  if (uploader.checkpoint.shapeOf('farSlope', layer) === undefined) return undefined;
  const all = await uploader.floats('farSlope', layer);
  const own = all.slice(heads.start * headDim, heads.end * headDim);
  return uploader.floatTensor(own, [size(heads), 1, headDim], 'f32');
}
