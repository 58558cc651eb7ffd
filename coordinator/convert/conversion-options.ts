/**
 * What a conversion is asked for and what it reports. commands/convert.ts fills the options from flags, the demo from
 * constants. Read next: convert-checkpoint.ts.
 */
import type { ClusterConfig } from '../../config/cluster.ts';
import type { ExactTokens } from '../../config/shard-plan.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { weightLayout } from '../../model/tensor-types.ts';
import type { MatrixType } from '../../model/transmla/encode-floats.ts';
import type { RecipeStep } from '../../model/transmla/recipe-steps.ts';
import type { UntouchedType } from '../../model/transmla/untouched-tensors.ts';
import type { ModelText } from '../text.ts';
import type { SizeRequest } from './choose-settings.ts';

/** recipe: model/transmla/recipe.ts; published: TransMLA as in its paper. */
export const conversionMethods = ['recipe', 'published'] as const;
export type ConversionMethod = (typeof conversionMethods)[number];

export interface ConversionOptions {
  /** Without meaning for exact sizes. */
  readonly method: ConversionMethod;
  /** Path of the source checkpoint. */
  readonly model: string;
  /** Folder to be made. */
  readonly out: string;
  /** Replace a converted checkpoint that is there. */
  readonly force: boolean;
  readonly sizes: SizeRequest;
  /** First and last tokens that keep the source's keys and values; null: none. */
  readonly near: ExactTokens | null;
  /** Steps of the recipe to leave out. */
  readonly without: ReadonlySet<RecipeStep>;
  /** Text files, or 'self' alone: text that the model writes. */
  readonly calibration: readonly string[];
  readonly calibrationTokens: number;
  readonly seed: number;
  /** Of the matrices that are converted. */
  readonly dtype: MatrixType;
  /** Of the others. */
  readonly untouched: UntouchedType;
  /** null: the model has none; calibration on its own text then begins with random tokens. */
  readonly text: Pick<ModelText, 'encode' | 'encodeRaw'> | null;
  /** How the ranks that calibrate and measure compute; model, scheme and cache are set by the conversion. */
  readonly cluster: Pick<ClusterConfig, 'compute' | 'collective' | 'ranks'>;
  readonly log: (line: string) => void;
  readonly signal?: AbortSignal;
}

/** The same before the source is known. */
export interface ConversionRequest extends Omit<ConversionOptions, 'dtype'> {
  /** auto: 8-bit blocks for a source whose attention is stored in blocks, else half precision. */
  readonly dtype: MatrixType | 'auto';
}

export function optionsFor<Request extends Pick<ConversionRequest, 'dtype'>>(
  source: Pick<Checkpoint, 'shapeOf'>,
  request: Request,
): Omit<Request, 'dtype'> & Pick<ConversionOptions, 'dtype'> {
  const stored = source.shapeOf('query', 0)?.type;
  const usual = stored !== undefined && weightLayout(stored).blockSize > 1 ? 'q8_0' : 'f16';
  return { ...request, dtype: request.dtype === 'auto' ? usual : request.dtype };
}

/** Exact conversion approximates nothing, so the plain way is as good as any. */
export function methodOf({ method, sizes }: Pick<ConversionOptions, 'method' | 'sizes'>): ConversionMethod {
  return sizes.exact ? 'published' : method;
}

/** Where one layer loses. Shares of energy; what was not measured is null. */
export interface LayerLoss {
  /** Expected by the recipe, in units of its own, comparable within a layer: pairs that lost RoPE, and what the latent leaves out. */
  readonly rotation: number;
  readonly rank: number;
  /** Of the heads' outputs, less what near tokens give: missed by the PCA's decoder, and after the refit of W_UV. */
  readonly headsMissed: number | null;
  readonly headsMissedRefitted: number | null;
  /** Of the layer's attention output: missed after the refit of W_O. */
  readonly outputMissed: number | null;
}

/** Written to conversion_report.json and printed by `tpla convert --json`. */
export interface ConversionReport {
  readonly method: ConversionMethod;
  readonly exact: boolean;
  /** Perplexity of the source on held-out windows of the calibration text. */
  readonly originalPpl: number;
  /** The same after dropping RoPE, with a latent of full rank. */
  readonly afterRopePpl: number;
  /** The same of the written checkpoint. */
  readonly afterRankPpl: number;
  /** Numbers that one token leaves in the cache of one layer. */
  readonly cacheFloatsBefore: number;
  readonly cacheFloatsAfter: number;
  /** First and last tokens that keep the source's keys and values beside that, constant per sequence. */
  readonly nearTokens: ExactTokens;
  readonly ropeDim: number;
  readonly kvRank: number;
  readonly freqfold: number;
  /** null: the method has none. */
  readonly balance: number | null;
  readonly seed: number;
  readonly dtype: MatrixType;
  /** 'self', or the names of the text files. */
  readonly calibration: string;
  readonly calibrationTokens: number;
  readonly heldOutTokens: number;
  /** sha256 of the calibration tokens, held-out ones after them, as little-endian int32. */
  readonly calibrationHash: string;
  readonly sourceIdentity: string;
  /** Steps of the recipe that were left out. */
  readonly without: readonly RecipeStep[];
  /** Where each layer loses; empty for the published method. */
  readonly layers: readonly LayerLoss[];
  readonly seconds: number;
  /** Where the time went. */
  readonly stageSeconds: Readonly<Record<string, number>>;
}
