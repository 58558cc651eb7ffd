/**
 * What the layer code knows of a model: sizes and features, never a family's name. model/families/ fills it from a
 * config.json or GGUF metadata; worker/layer.ts reads it. Pure data: no file is read here.
 */

export interface ModelConfig {
  /** `model_type` or GGUF architecture: for messages only, nothing may branch on it. */
  readonly architecture: string;
  readonly hiddenDim: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly vocabSize: number;
  /** Longest sequence the model was made for, in tokens. */
  readonly contextLength: number;
  readonly normEps: number;
  readonly attention: GqaConfig | MlaConfig;
  readonly rope: RopeConfig;
  /** The dense feed-forward of the layers that do not route to experts. */
  readonly feedForward: FeedForwardConfig;
  /** The output head is the embedding matrix. */
  readonly tiedEmbeddings: boolean;
  /** null: no layer routes to experts. */
  readonly experts: ExpertsConfig | null;
  /** By layer: a token sees this many positions, its own included; 0 or absent: all. */
  readonly slidingWindows: readonly number[];
  /** Attention and feed-forward outputs are normed once more, summed over ranks, before they join the residual stream. */
  readonly postNorms: boolean;
  /** Multiplies the embedding of every token. */
  readonly embeddingScale: number;
  /** Logits become cap * tanh(logits / cap); 0: they stay. */
  readonly logitSoftcap: number;
}

/** What a model is without features of its own, to be spread into a ModelConfig. */
export const plainFeatures = {
  experts: null,
  slidingWindows: [],
  postNorms: false,
  embeddingScale: 1,
  logitSoftcap: 0,
} as const;

/** Grouped-query attention: query head h reads KV head floor(h * numKvHeads / numHeads). */
export interface GqaConfig {
  readonly kind: 'gqa';
  readonly numKvHeads: number;
  readonly headDim: number;
  /** Multiplies the scores; headDim^-0.5 unless the model says otherwise. */
  readonly scoreScale: number;
  /** Scores become cap * tanh(scores / cap) before the mask; 0: they stay. */
  readonly scoreSoftcap: number;
  /** Queries and keys are normed per head before rope (weights queryNorm, keyNorm). */
  readonly headNorms: boolean;
}

/** Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; spec names: r, p, n, v). */
export interface MlaConfig {
  readonly kind: 'mla';
  /** kv_lora_rank, r: width of the latent. */
  readonly latentDim: number;
  /** qk_rope_head_dim, p: width of the shared rotary key. */
  readonly ropeDim: number;
  /** qk_nope_head_dim, n: may be 0 (a conversion that keeps every rotary pair). */
  readonly nopeDim: number;
  /** v_head_dim, v */
  readonly valueDim: number;
  /** q_lora_rank; null: queries come straight from the layer input. */
  readonly queryLoraDim: number | null;
  /** RMSNorm on the latent (and on the query's low-rank form); false for TransMLA without latent norm. */
  readonly latentNormEps: number | null;
  /** Multiplies the scores: (n + p)^-0.5, times mscale^2 under yarn. */
  readonly scoreScale: number;
  /** As in GqaConfig. */
  readonly scoreSoftcap: number;
  /** Set where the heads have keys and values of their own for some tokens, beside the latent of every token. */
  readonly near?: NearTokens;
}

/**
 * The first `sinks` tokens of a sequence and, for each token, the last `window`, its own included: a converted model
 * attends to these with the source's own keys and values. docs/conversion.md, step 7.
 */
export interface NearTokens {
  readonly sinks: number;
  readonly window: number;
  /** G: as in the source; heads of n numbers. */
  readonly numKvHeads: number;
  /** The source's rotary table. [n / 2] */
  readonly frequencies: readonly number[];
  /** The source's: multiplies cos and sin. */
  readonly attentionFactor: number;
}

/** Rotary position embedding of the rotated part: the whole head (GQA) or the rope part (MLA). */
export interface RopeConfig {
  /** Angle per position of each rotated pair, scaling already applied. [rotatedDim / 2]; a layer's own table may replace it. */
  readonly frequencies: readonly number[];
  /** Multiplies cos and sin (yarn); 1 otherwise. */
  readonly attentionFactor: number;
  /** true: pairs are neighbours (2i, 2i+1), as DeepSeek stores them; false: halves (i, i + dim/2). */
  readonly interleaved: boolean;
}

export interface FeedForwardConfig {
  readonly kind: 'gated';
  readonly dim: number;
  readonly activation: 'silu' | 'gelu-tanh';
}

/** Mixture of experts: every token is computed by the few experts that its router chooses, and by the shared ones. */
export interface ExpertsConfig {
  /** By layer: whether it routes; the others are dense. [numLayers] */
  readonly layers: readonly boolean[];
  readonly count: number;
  readonly perToken: number;
  /** Columns of one expert. */
  readonly dim: number;
  /** Columns of all shared experts together, which every token passes through with weight 1; 0: none. */
  readonly sharedDim: number;
  readonly routing: RoutingConfig;
}

/** How router logits become a choice and its weights. */
export interface RoutingConfig {
  readonly scoring: 'softmax' | 'sigmoid';
  /** The choice, not the weights, is made by score plus a learned bias per expert (weight routerBias). */
  readonly biased: boolean;
  /** Experts are chosen from the best `keep` of `count` equal groups; a group is worth the sum of its `best` best scores. */
  readonly groups: { readonly count: number; readonly keep: number; readonly best: number };
  /** The chosen weights are divided by their sum. */
  readonly normalize: boolean;
  /** Multiplies the weights. */
  readonly scale: number;
}

/** Whether a layer routes its tokens to experts. */
export function routes(config: ModelConfig, layer: number): boolean {
  return config.experts?.layers[layer] === true;
}

/** Numbers that one token leaves in the KV cache of one layer when nothing is sharded. */
export function cacheNumbersPerToken(config: ModelConfig): number {
  const attention = config.attention;
  switch (attention.kind) {
    case 'gqa':
      return 2 * attention.numKvHeads * attention.headDim;
    case 'mla':
      return attention.latentDim + attention.ropeDim;
  }
}
