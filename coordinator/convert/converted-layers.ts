/** What a method of conversion hands back to convert-checkpoint.ts, and what it is given. */
import type { ModelConfig } from '../../config/model-config.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import type { MlaMaps } from '../../model/transmla/attention-maps.ts';
import type { Dense } from '../../model/transmla/dense.ts';
import type { LatentRotation } from '../../model/transmla/latent-rotation.ts';
import type { EncodedLayer } from '../../model/transmla/write-converted.ts';
import type { Cluster } from '../cluster.ts';
import type { CalibrationText } from './calibration-text.ts';
import type { ConversionOptions, LayerLoss } from './conversion-options.ts';
import type { ConversionProgress } from './conversion-progress.ts';
import type { Stopwatch } from './stopwatch.ts';

export interface ConversionJob {
  readonly source: Checkpoint;
  readonly cluster: Cluster;
  readonly text: CalibrationText;
  readonly options: ConversionOptions;
  readonly watch: Stopwatch;
  readonly progress: ConversionProgress;
  /**
   * Encodes a finished layer and takes it out of memory; throws when the user has interrupted the run. Rotation and output
   * as for encodeLayer.
   */
  readonly store: (
    kind: LayerKind,
    layer: number,
    made: { readonly maps: MlaMaps; readonly output?: Dense; readonly meanValue?: Dense; readonly farSlope?: Dense },
    rotation: LatentRotation | undefined,
  ) => Promise<EncodedLayer>;
  /** A layer that an earlier run stored. */
  readonly find: (kind: LayerKind, layer: number) => Promise<EncodedLayer>;
}

/** As it will be written, or with a latent of full rank, to be measured. */
export type LayerKind = 'final' | 'without-rank';

export interface ConvertedLayers {
  readonly ropeDim: number;
  readonly latentDim: number;
  readonly freqfold: number;
  /** null: the method has no balance. */
  readonly balance: number | null;
  readonly final: readonly EncodedLayer[];
  /** Empty where the method does not say. */
  readonly losses: readonly LayerLoss[];
  /** With a latent of full rank; undefined when nothing is dropped. */
  readonly withoutRank: readonly EncodedLayer[] | undefined;
}

/** Layers that decide among settings, spread over the depth: the choice needs no more. */
export function sampledLayers(numLayers: number): number[] {
  const count = Math.min(3, numLayers);
  return Array.from({ length: count }, (_, i) => Math.floor(((i + 0.5) * numLayers) / count));
}

/** Whether scores by latents cannot be shifted against those of near tokens, because both are capped. */
export function scoresApart({ attention }: ModelConfig, { near }: ConversionOptions): boolean {
  return near !== null && attention.scoreSoftcap > 0;
}
