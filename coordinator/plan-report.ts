/**
 * What each rank of a plan holds and sends, computed from sizes alone: no weight is read, no process started. Weights
 * are counted as ../worker/weights.ts cuts them; norms and biases, far below a percent, are left out.
 */
import type { ModelConfig } from '../config/model-config.ts';
import { validLatentGroups, type Scheme } from '../config/schemes.ts';
import {
  latentWidth,
  planShards,
  size,
  type PlanRequest,
  type RankPlan,
  type ShardPlan,
} from '../config/shard-plan.ts';
import type { WorkerOptions } from '../collective/setup.ts';
import type { Checkpoint, LayerRole, ModelRole, WeightType } from '../model/checkpoint.ts';
import { weightLayout } from '../model/tensor-types.ts';
import { bytesSentPerToken, cacheBytesPerToken, cacheNumbersOf, schemeCosts, exactTokenBytes } from './scheme-costs.ts';

export interface RankForecast extends RankPlan {
  readonly weightBytes: number;
  readonly cacheBytesPerToken: number;
  /** Of all slots at full context, tokens with exact attention included. */
  readonly cacheBytes: number;
  /** Float32 sent by this rank for each decoded token at full context: sums and gathers, as a ring sends them. */
  readonly bytesSentPerToken: number;
}

export function forecast(checkpoint: Checkpoint, plan: ShardPlan, options: WorkerOptions): RankForecast[] {
  const model = checkpoint.config;
  return plan.ranks.map((rank) => {
    const cachePerToken = cacheBytesPerToken(model, rank, options.cacheType);
    return {
      ...rank,
      weightBytes: Math.round(weightBytesOf(checkpoint, plan, rank, options.weights)),
      cacheBytesPerToken: cachePerToken,
      cacheBytes: options.slots * (cachePerToken * options.contextTokens + exactTokenBytes(model, plan, rank)),
      bytesSentPerToken: Math.round(bytesSentPerToken(model, plan, options.contextTokens)),
    };
  });
}

/** Cache numbers of one token in one layer, on each rank (the one that holds most) under each scheme that fits the model. */
export function cacheNumbersByScheme(model: ModelConfig, worldSize: number): Readonly<Record<string, number>> {
  const requests: [string, PlanRequest][] =
    model.attention.kind === 'gqa'
      ? [[worldSize === 1 ? 'gqa' : `gqa on ${worldSize} ranks`, request('gqa', worldSize, 1)]]
      : [
          ['mla', request('mla', worldSize, 1)],
          ...validLatentGroups(worldSize)
            .filter((groups) => groups > 1)
            .map((groups): [string, PlanRequest] => [`tpla in ${groups} groups`, request('tpla', worldSize, groups)]),
          ...(worldSize === 1
            ? []
            : [[`dcp on ${worldSize} ranks`, request('dcp', worldSize, 1)] satisfies [string, PlanRequest]]),
        ];
  return Object.fromEntries(
    requests.map(([name, planned]) => [
      name,
      Math.max(...planShards(model, planned).ranks.map((rank) => cacheNumbersOf(model, rank))),
    ]),
  );
}

function request(scheme: Scheme, worldSize: number, latentGroups: number): PlanRequest {
  return { scheme, worldSize, latentGroups, blockSize: 1 };
}

/** Cache bytes of one token, all layers, of the whole model and on each of several ranks under each scheme. */
export function cacheBytesByScheme(
  model: ModelConfig,
  type: WorkerOptions['cacheType'],
  worldSize: number,
): Readonly<Record<string, number>> {
  const [whole] = schemeCosts(model, 1, type, 0);
  const entries = schemeCosts(model, worldSize, type, 0)
    .filter(({ scheme }) => scheme !== 'mla')
    .map((cost): [string, number] => [`${cost.scheme} on ${worldSize} ranks, each`, cost.cacheBytesPerToken]);
  return Object.fromEntries([...(whole === undefined ? [] : [[whole.scheme, whole.cacheBytesPerToken]]), ...entries]);
}

function weightBytesOf(
  checkpoint: Checkpoint,
  plan: ShardPlan,
  rank: RankPlan,
  weights: WorkerOptions['weights'],
): number {
  const { numHeads, vocabSize, numLayers, attention, tiedEmbeddings } = checkpoint.config;
  const part = (share: number, role: LayerRole | ModelRole, layer?: number): number =>
    share * matrixBytes(checkpoint, weights, role, layer);
  const heads = size(rank.heads) / numHeads;
  const rows = size(rank.vocab) / vocabSize;
  let bytes = part(rows, 'embedding') + (tiedEmbeddings ? 0 : part(rows, 'head'));
  for (let layer = 0; layer < numLayers; layer++) {
    for (const [role, share] of feedForwardShares(checkpoint.config, rank)) bytes += part(share, role, layer);
    if (heads === 0) continue;
    for (const role of ['query', 'queryUp'] as const) bytes += part(heads, role, layer);
    bytes += part(plan.scheme === 'dcp' ? size(rank.prefillHeads) / numHeads : heads, 'output', layer);
    if (attention.kind === 'gqa') {
      const kvHeads = size(rank.kvHeads) / attention.numKvHeads;
      bytes += part(kvHeads, 'key', layer) + part(kvHeads, 'value', layer);
      continue;
    }
    const latent = latentWidth(rank) / attention.latentDim;
    bytes += part(1, 'queryDown', layer) + part(1, 'latentDown', layer) + part(heads * latent, 'latentUp', layer);
    // Exact prefill keeps the whole latent's projection for its own heads beside the shard's.
    if (plan.latentGroups > 1) bytes += part(size(rank.prefillHeads) / numHeads, 'latentUp', layer);
  }
  return bytes;
}

/** This rank's share of each matrix of the feed-forward, dense or routed; routers are replicated. */
function feedForwardShares({ feedForward, experts }: ModelConfig, rank: RankPlan): [LayerRole, number][] {
  const dense = size(rank.feedForward) / feedForward.dim;
  const shares: [LayerRole, number][] = [
    ['gate', dense],
    ['up', dense],
    ['down', dense],
  ];
  if (experts === null) return shares;
  const routed = (size(rank.experts) / experts.count) * (size(rank.expertColumns) / experts.dim);
  const shared = experts.sharedDim === 0 ? 0 : size(rank.sharedColumns) / experts.sharedDim;
  return [
    ...shares,
    ['router', 1],
    ['expertGate', routed],
    ['expertUp', routed],
    ['expertDown', routed],
    ['sharedGate', shared],
    ['sharedUp', shared],
    ['sharedDown', shared],
  ];
}

/** 0 for a weight that this model does not have. */
function matrixBytes(
  checkpoint: Checkpoint,
  weights: WorkerOptions['weights'],
  role: LayerRole | ModelRole,
  layer: number | undefined,
): number {
  const shape = checkpoint.shapeOf(role, layer);
  if (shape === undefined) return 0;
  // Absorbed projections are recomputed while loading and stay floats.
  const stored = shape.fp8 ? 'f16' : shape.type;
  const float = stored === 'f32' || weights === 'f32' ? 'f32' : 'f16';
  const kept: WeightType = weights === 'keep' ? stored : weights;
  const { blockBytes, blockSize } = weightLayout(role === 'latentUp' ? float : kept);
  return (shape.rows * shape.cols * blockBytes) / blockSize;
}
