/**
 * From a checkpoint and a configuration to what a cluster will be: the shard plan and the options of every rank, with
 * `auto` and 0 replaced by what they mean. Pure: starts nothing, so that `tpla plan` can print the same.
 */
import { defaultContextCeiling, defaultExactTokens, type ClusterConfig } from '../config/cluster.ts';
import { ConfigError } from '../config/errors.ts';
import type { ModelConfig } from '../config/model-config.ts';
import { chooseScheme, defaultLatentGroups, type Scheme } from '../config/schemes.ts';
import { nearTokens } from '../config/near-tokens.ts';
import { latentWidth, planShards, size, type ExactTokens, type ShardPlan } from '../config/shard-plan.ts';
import type { Setup, WorkerOptions } from '../collective/setup.ts';
import type { Checkpoint } from '../model/checkpoint.ts';
import { weightLayout } from '../model/tensor-types.ts';

export interface Layout {
  readonly plan: ShardPlan;
  /** Why the plan has its scheme. */
  readonly reason: string;
  readonly options: WorkerOptions;
}

/** @throws ConfigError for a split, scheme or context that is impossible for this model. */
export function layOut(checkpoint: Checkpoint, config: ClusterConfig): Layout {
  const model = checkpoint.config;
  const worldSize = config.ranks.length;
  const { scheme, reason } = schemeOf(model, config);
  const latentGroups = config.attention.latentGroups || defaultLatentGroups(scheme, worldSize);
  const plan = planShards(model, {
    worldSize,
    scheme,
    latentGroups,
    blockSize: columnBlock(checkpoint, config.compute.weights),
    expertSharding: config.compute.expertSharding,
    shares: config.ranks.map((rank) => rank.share),
    exactTokens: exactTokensOf(model, config, scheme, latentGroups),
    latentOverlap: config.attention.overlap,
  });
  checkCacheType(model, plan, config);
  checkNorm(model, config, plan);
  const contextTokens = contextOf(model, config.cache.contextTokens);
  return {
    plan,
    reason,
    options: {
      backend: config.compute.backend,
      device: '',
      threads: config.compute.threads,
      transport: config.collective.transport,
      weights: config.compute.weights,
      cacheType: config.cache.type,
      contextTokens,
      slots: config.cache.slots || 1,
      maxStepTokens: Math.min(config.compute.maxStepTokens, contextTokens),
      reparameterization: config.attention.reparameterization,
      // Only attention over a shard has anything to correct.
      corrections: scheme === 'tpla' && latentGroups > 1 ? config.attention.corrections : '',
      prefill: config.attention.prefill,
      norm: config.attention.norm,
      timeoutMs: config.collective.timeoutMs,
      payload: config.collective.payload,
    },
  };
}

/** Nothing is kept beside the shard where that is the whole latent or the model has near tokens, unless the user asks for it. */
function exactTokensOf(
  model: ModelConfig,
  { attention }: ClusterConfig,
  scheme: Scheme,
  latentGroups: number,
): ExactTokens {
  const usual =
    scheme === 'tpla' && latentGroups > 1 && attention.norm === 'exact' && nearTokens(model) === undefined
      ? defaultExactTokens
      : { window: 0, sinks: 0 };
  return { sinks: attention.sinks ?? usual.sinks, window: attention.window ?? usual.window };
}

/** @throws ConfigError where there is no norm to cut, or the whole latent is kept */
function checkNorm({ attention, architecture }: ModelConfig, config: ClusterConfig, plan: ShardPlan): void {
  if (config.attention.norm === 'exact') return;
  if (attention.kind === 'gqa' || attention.latentNormEps === null)
    throw new ConfigError(`norm: sliced needs a model that norms its latent; this ${architecture} model does not`);
  if (plan.latentGroups === 1)
    throw new ConfigError(`norm: sliced has no meaning for scheme ${plan.scheme} with a whole latent; leave it out`);
  if (config.attention.overlap > 0)
    throw new ConfigError(`norm: sliced is for shards without an overlap of ${config.attention.overlap}; leave it out`);
  const { sinks, window } = plan.exactTokens;
  if (sinks + window > 0)
    throw new ConfigError(
      `norm: sliced leaves no whole latents for a window of ${window} and ${sinks} sinks; leave them out`,
    );
}

function schemeOf(model: ModelConfig, config: ClusterConfig): { scheme: Scheme; reason: string } {
  const { scheme, latentGroups, window, sinks } = config.attention;
  if (scheme !== 'auto') return { scheme, reason: 'as asked' };
  if (latentGroups > 1 && model.attention.kind === 'mla')
    return { scheme: 'tpla', reason: `as ${latentGroups} latent groups ask` };
  if ((window ?? 0) + (sinks ?? 0) > 0 && model.attention.kind === 'mla')
    return { scheme: 'tpla', reason: 'as exact attention to the first or last tokens asks' };
  const hosts = new Set(config.ranks.map((rank) => rank.host));
  const oneHost = hosts.size === 1 && !hosts.has('join');
  return chooseScheme(model, config.ranks.length, oneHost);
}

/**
 * The largest block among the matrices whose columns are cut, in the file and as the ranks will store them: the file's
 * counts too, because a rank reads whole blocks.
 */
function columnBlock(checkpoint: Checkpoint, weights: ClusterConfig['compute']['weights']): number {
  let block = weights === 'keep' ? 1 : weightLayout(weights).blockSize;
  for (let layer = 0; layer < checkpoint.config.numLayers; layer++) {
    for (const role of ['down', 'expertDown', 'sharedDown'] as const) {
      const shape = checkpoint.shapeOf(role, layer);
      if (shape !== undefined) block = Math.max(block, weightLayout(shape.type).blockSize);
    }
  }
  return block;
}

/** Blocks of q8_0 must not reach over the parts of a row that attention reads apart. */
function checkCacheType(model: ModelConfig, plan: ShardPlan, { cache, compute }: ClusterConfig): void {
  if (cache.type !== 'q8_0') return;
  if (compute.backend !== 'ggml')
    throw new ConfigError(
      `cache.type: q8_0 is computed by backend ggml only, not by ${compute.backend}; use f16 or f32`,
    );
  const { blockSize } = weightLayout('q8_0');
  const { attention } = model;
  for (const plannedRank of plan.ranks) {
    const { rank, ropeKey, sharedLatent } = plannedRank;
    const parts =
      attention.kind === 'gqa' ? [attention.headDim] : [latentWidth(plannedRank), size(ropeKey), size(sharedLatent)];
    if (parts.every((part) => part % blockSize === 0)) continue;
    const kept =
      attention.kind === 'gqa'
        ? `heads of ${parts[0]} numbers`
        : `${parts[0]} latent columns and ${parts[1]} of the rotary key`;
    throw new ConfigError(
      `cache.type: q8_0 stores blocks of ${blockSize} numbers, but rank ${rank} keeps ${kept} of a token; use f16, ` +
        `or a model and latent groups where each is a multiple of ${blockSize}`,
    );
  }
}

function contextOf(model: ModelConfig, asked: number): number {
  if (asked === 0) return Math.min(model.contextLength, defaultContextCeiling);
  if (asked <= model.contextLength) return asked;
  throw new ConfigError(
    `context: ${asked} tokens are more than this ${model.architecture} model was made for (${model.contextLength}); ` +
      `use at most ${model.contextLength}`,
  );
}

/** What one rank is told before it loads. */
export function setupOf(
  rank: number,
  { checkpoint, config, allowChaos = false }: { checkpoint: Checkpoint; config: ClusterConfig; allowChaos?: boolean },
  all: Pick<Setup, 'plan' | 'options' | 'epoch' | 'runId' | 'ringEndpoints' | 'ringKeys' | 'hosts'>,
): Setup {
  return {
    kind: 'setup',
    rank,
    worldSize: all.plan.worldSize,
    modelPath: checkpoint.path,
    modelIdentity: checkpoint.identity,
    chaos: allowChaos,
    ...all,
    options: { ...all.options, device: config.ranks[rank]?.device ?? '' },
  };
}
