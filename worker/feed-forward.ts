/**
 * The feed-forward half of a layer: weights of this rank and what a program computes with them, dense (gate and up by
 * columns, down by rows) and for routed experts. Each result is partial. Read next: routed-experts.ts, which runs the
 * programs of routed layers.
 */
import { routes, type ModelConfig } from '../config/model-config.ts';
import { size, type Range, type RankPlan } from '../config/shard-plan.ts';
import type { Ops, Tensor } from './kernels/kernels.ts';
import type { WeightUploader } from './weight-uploader.ts';

export interface FeedForwardWeights {
  readonly gate: Tensor; // [localFeedForward, hidden]
  readonly up: Tensor; // [localFeedForward, hidden]
  readonly down: Tensor; // [hidden, localFeedForward]: its product is partial
}

export interface RoutedWeights {
  readonly router: Tensor; // [experts, hidden] f32, replicated
  readonly routerBias: Float32Array | undefined; // [experts]
  /** undefined: this rank has no columns or no experts. */
  readonly experts: ExpertWeights | undefined;
  /** Columns of the shared experts; undefined: none, or none here. */
  readonly shared: FeedForwardWeights | undefined;
}

export interface ExpertWeights {
  readonly gate: Tensor; // [localExperts, localColumns, hidden]
  readonly up: Tensor; // [localExperts, localColumns, hidden]
  readonly down: Tensor; // [localExperts, hidden, localColumns]
}

/** What a layer has: one of the two, or neither where this rank has no part in a dense layer. */
export interface LayerFeedForward {
  readonly feedForward: FeedForwardWeights | undefined;
  readonly routed: RoutedWeights | undefined;
}

export async function loadFeedForward(
  model: ModelConfig,
  rank: RankPlan,
  uploader: WeightUploader,
  layer: number,
): Promise<LayerFeedForward> {
  if (routes(model, layer)) return { feedForward: undefined, routed: await loadRouted(model, rank, uploader, layer) };
  return { feedForward: await loadDense(['gate', 'up', 'down'], rank.feedForward, uploader, layer), routed: undefined };
}

/** @param h [tokens, hidden] normed  @returns partial [tokens, hidden] */
export function denseDelta(ops: Ops, model: ModelConfig, weights: FeedForwardWeights, h: Tensor): Tensor {
  const gate = ops.matmul(weights.gate, h); // [tokens, localFeedForward]
  const product = ops.gated(gate, ops.matmul(weights.up, h), model.feedForward.activation);
  return ops.matmul(weights.down, product);
}

/**
 * Chosen experts, each times its share, and the shared ones.
 * @param h [tokens, hidden] normed
 * @param choice [tokens, slots] each; undefined: no token chose an expert of this rank
 * @returns partial [tokens, hidden]; undefined: this rank has no part in it
 */
export function routedDelta(
  ops: Ops,
  model: ModelConfig,
  weights: RoutedWeights,
  h: Tensor,
  choice: { readonly ids: Tensor; readonly shares: Tensor } | undefined,
): Tensor | undefined {
  const shared = weights.shared === undefined ? undefined : denseDelta(ops, model, weights.shared, h);
  if (weights.experts === undefined || choice === undefined) return shared;
  const { gate, up, down } = weights.experts;
  const rows = ops.reshape(h, [h.shape[0] ?? 0, 1, model.hiddenDim]);
  const gated = ops.gated(
    ops.expertMatmul(gate, rows, choice.ids), // [tokens, slots, localColumns]
    ops.expertMatmul(up, rows, choice.ids),
    model.feedForward.activation,
  );
  const sum = ops.weightedSum(ops.expertMatmul(down, gated, choice.ids), choice.shares);
  return shared === undefined ? sum : ops.add(sum, shared);
}

async function loadRouted(
  model: ModelConfig,
  rank: RankPlan,
  uploader: WeightUploader,
  layer: number,
): Promise<RoutedWeights> {
  const { checkpoint } = uploader;
  const router = await uploader.floats('router', layer);
  return {
    // In float32 whatever the others are stored as: a rounded logit may choose another expert.
    router: uploader.floatTensor(router, [router.length / model.hiddenDim, model.hiddenDim], 'f32'),
    routerBias:
      checkpoint.shapeOf('routerBias', layer) === undefined ? undefined : await uploader.floats('routerBias', layer),
    experts: await loadExperts(model, rank, uploader, layer),
    shared: await loadDense(['sharedGate', 'sharedUp', 'sharedDown'], rank.sharedColumns, uploader, layer),
  };
}

async function loadExperts(
  model: ModelConfig,
  { experts, expertColumns }: RankPlan,
  uploader: WeightUploader,
  layer: number,
): Promise<ExpertWeights | undefined> {
  if (size(experts) === 0 || size(expertColumns) === 0) return undefined;
  const hidden: Range = { start: 0, end: model.hiddenDim };
  return {
    gate: await uploader.stack('expertGate', layer, experts, expertColumns),
    up: await uploader.stack('expertUp', layer, experts, expertColumns),
    down: await uploader.stack('expertDown', layer, experts, hidden, expertColumns),
  };
}

async function loadDense(
  [gate, up, down]: readonly ['gate' | 'sharedGate', 'up' | 'sharedUp', 'down' | 'sharedDown'],
  columns: Range,
  uploader: WeightUploader,
  layer: number,
): Promise<FeedForwardWeights | undefined> {
  if (size(columns) === 0) return undefined;
  return {
    gate: await uploader.matrix(gate, layer, columns),
    up: await uploader.matrix(up, layer, columns),
    down: await uploader.matrix(down, layer, undefined, columns),
  };
}
