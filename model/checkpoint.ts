/**
 * A checkpoint as the rest of the program sees it: sizes, text tools and named weights, whatever the file format.
 * Only model/ knows the tensor names of formats and families; everyone else asks for a role. Reads are ranged: a rank
 * reads the bytes of its slice and no more.
 */
import type { ModelConfig } from '../config/model-config.ts';
import type { Range } from '../config/shard-plan.ts';

/** Storage types, named as GGUF names them (the kernels use the same names). */
export type WeightType =
  | 'f32'
  | 'f16'
  | 'bf16'
  | 'q4_0'
  | 'q4_1'
  | 'q5_0'
  | 'q5_1'
  | 'q8_0'
  | 'q2_K'
  | 'q3_K'
  | 'q4_K'
  | 'q5_K'
  | 'q6_K'
  | 'iq4_nl';

/** A matrix in its stored type, row-major: row i is `bytes[i * rowBytes ...]`. Vectors have one row. */
export interface Weight extends WeightShape {
  readonly bytes: Uint8Array;
}

/** Roles outside the layers. */
export const modelRoles = ['embedding', 'head', 'finalNorm'] as const;
export type ModelRole = (typeof modelRoles)[number];

/** Roles inside a layer. Matrices are [outputs, inputs], as Hugging Face stores them. */
export const layerRoles = [
  'attentionNorm', // norms: gains as they multiply, whatever the file adds to them
  'attentionPostNorm', // on the attention output, where the model has one
  // gqa; query is also used by MLA without a low-rank query: [H (n + p), D], per head nope rows, then rope rows
  'query',
  'queryBias',
  'queryNorm', // [headDim]
  'key',
  'keyBias',
  'keyNorm', // [headDim]
  'value',
  'valueBias',
  'output',
  'outputBias',
  // mla
  'queryDown', // W_DQ [q_lora, D]
  'queryDownBias',
  'queryDownNorm',
  'queryUp', // W_UQ [H (n + p), q_lora]
  'latentDown', // W_DKV and W_KR [r + p, D]: latent rows, then rope key rows
  'latentDownBias',
  'latentNorm',
  'latentUp', // W_UK and W_UV [H (n + v), r]: per head nope rows, then value rows
  'farSlope', // [H n] f32: what scores by latents lack beside those of near tokens, per number of a nope query
  'ropeFrequencies', // [p / 2] f32, this layer's own table (converted models)
  // feed-forward
  'feedForwardNorm',
  'feedForwardPostNorm',
  'gate',
  'up',
  'down',
  // instead of gate, up and down in layers that route to experts; experts one below the other
  'router', // [experts, D]
  'routerBias', // [experts]: added to the scores for the choice only
  'expertGate', // [experts * expertDim, D]
  'expertUp',
  'expertDown', // [experts * D, expertDim]
  'sharedGate',
  'sharedUp',
  'sharedDown',
] as const;
export type LayerRole = (typeof layerRoles)[number];

export interface WeightShape {
  readonly rows: number;
  readonly cols: number;
  readonly type: WeightType;
  /** 8-bit floats in the file, read as f32: half precision is enough to compute with them. */
  readonly fp8?: true;
}

export interface Checkpoint extends AsyncDisposable {
  readonly path: string;
  readonly format: 'gguf' | 'safetensors';
  readonly config: ModelConfig;
  /** Bytes of all weight files together. */
  readonly weightFileBytes: number;
  /** Hash of configuration and tensor table: equal on every rank, cheap to compute (weights are not read). Hex. */
  readonly identity: string;

  /** undefined when the checkpoint has no such weight (a bias, the head of a tied model). */
  shapeOf(role: ModelRole | LayerRole, layer?: number): WeightShape | undefined;

  /**
   * Rows and columns of one weight in its stored type, in the order of the Hugging Face layout (GGUF's permuted q and k
   * rows are put back). Column bounds are multiples of the type's block.
   * @throws ConfigError when the file ends early or the weight does not exist.
   */
  read(role: ModelRole | LayerRole, layer?: number, rows?: Range, cols?: Range): Promise<Weight>;
}
