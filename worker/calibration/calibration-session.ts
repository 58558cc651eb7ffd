/**
 * One rank's part of a calibration: holds the residual streams of its windows and takes them through the model layer by
 * layer, returning each layer's statistics. Ranks divide the windows, so nothing is exchanged; the coordinator adds the
 * payloads, in an order that does not depend on the division (collective/window-sums.ts). Layers must be asked for in
 * order. With a refit there are two streams, see refit-session.ts. Read next: statistics-programs.ts.
 */
import { ConfigError, invariant } from '../../config/errors.ts';
import type { GqaConfig } from '../../config/model-config.ts';
import type { ExactTokens, Range } from '../../config/shard-plan.ts';
import { statisticsLength, type StatisticsShape } from '../../collective/statistics.ts';
import { segmentsWithin, sumSegments, windowsOfRank } from '../../collective/window-sums.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { toFloat32 } from '../../model/dequantize.ts';
import type { Backend } from '../backend.ts';
import { RefitSession, type OwnWindows } from './refit-session.ts';
import { StatisticsPrograms } from './statistics-programs.ts';
import { WholeLayer } from './whole-layer.ts';

export interface CalibrationPart {
  /** Of all ranks, all of equal length. */
  readonly windows: readonly (readonly number[])[];
  readonly worldSize: number;
  readonly rank: number;
  /** Layers are refitted one by one: statistics are taken on the converted stream, which they do not move. */
  readonly refits: boolean;
  /** Tokens that the converted model attends to by the source's keys and values; undefined: none. */
  readonly near?: ExactTokens | undefined;
}

export class CalibrationSession implements Disposable {
  /** Undefined unless layers are refitted. */
  readonly refit: RefitSession | undefined;
  private readonly checkpoint: Checkpoint;
  private readonly attention: GqaConfig;
  private readonly own: OwnWindows;
  private readonly layer: WholeLayer;
  private readonly programs: StatisticsPrograms;
  private nextLayer = 0;

  /** @throws ConfigError for a model without GQA attention */
  static async begin(checkpoint: Checkpoint, backend: Backend, part: CalibrationPart): Promise<CalibrationSession> {
    const { windows, worldSize, rank } = part;
    const tokens = windows[0]?.length ?? 1;
    invariant(
      windows.every((window) => window.length === tokens),
      'calibration windows differ in length',
    );
    const range: Range = windowsOfRank(windows.length, worldSize, rank);
    const streams: Float32Array[] = [];
    for (const window of windows.slice(range.start, range.end)) streams.push(await embed(checkpoint, window));
    const own = { first: range.start, streams, segments: segmentsWithin(range, windows.length), tokens };
    return new CalibrationSession(checkpoint, backend, own, part);
  }

  private constructor(
    checkpoint: Checkpoint,
    backend: Backend,
    own: OwnWindows,
    { refits, near }: Pick<CalibrationPart, 'refits' | 'near'>,
  ) {
    const { attention, architecture } = checkpoint.config;
    if (attention.kind !== 'gqa')
      throw new ConfigError(`calibration: this ${architecture} model has latent attention already`);
    this.checkpoint = checkpoint;
    this.attention = attention;
    this.own = own;
    this.layer = new WholeLayer(checkpoint, backend, attention);
    const { kernels } = backend;
    this.programs = new StatisticsPrograms(kernels, checkpoint.config, attention, this.layer, own.tokens, near);
    this.refit = refits ? new RefitSession(kernels, checkpoint.config, attention, this.layer, own, near) : undefined;
  }

  /** @returns sums of collective/statistics.ts over this rank's segments, see collective/window-sums.ts */
  async statistics(layer: number): Promise<Float32Array> {
    await this.load(layer);
    const { streams, first, segments } = this.own;
    const length = statisticsLength(this.shape());
    return sumSegments(segments, length, (window) => this.statisticsOf(streams[window - first]));
  }

  /** Takes both streams through the original layer. */
  async follow(layer: number): Promise<void> {
    invariant(this.refit !== undefined, 'streams follow without refit');
    await this.load(layer);
    this.refit.original();
    this.refit.align();
  }

  /** Goes on behind some layers. @param streams of all windows [windows][2][T, D] */
  restore(layers: number, streams: Float32Array): void {
    invariant(this.refit !== undefined, 'streams restored without refit');
    this.refit.restore(streams);
    this.nextLayer = layers;
  }

  [Symbol.dispose](): void {
    this.refit?.[Symbol.dispose]();
    this.programs[Symbol.dispose]();
    this.layer[Symbol.dispose]();
  }

  /** @param stream [T, D] */
  private statisticsOf(stream: Float32Array | undefined): Float64Array {
    invariant(stream !== undefined, "a window that is another rank's");
    return this.programs.run(stream, this.refit === undefined);
  }

  private async load(layer: number): Promise<void> {
    invariant(layer === this.nextLayer, `calibration: layer ${layer} after layer ${this.nextLayer - 1}`);
    this.nextLayer++;
    if (this.own.streams.length > 0) {
      await this.layer.load(layer);
      this.programs.begin();
    }
  }

  private shape(): StatisticsShape {
    const { numHeads } = this.checkpoint.config;
    const { numKvHeads, headDim } = this.attention;
    return { numHeads, numKvHeads, headDim };
  }
}

/** @returns [T, D]: rows of the embedding, each read once */
async function embed(checkpoint: Checkpoint, tokens: readonly number[]): Promise<Float32Array> {
  const { hiddenDim: hidden, embeddingScale } = checkpoint.config;
  const rows = new Map<number, Float32Array>();
  const out = new Float32Array(tokens.length * hidden);
  for (const [t, token] of tokens.entries()) {
    const row =
      rows.get(token) ?? toFloat32(await checkpoint.read('embedding', undefined, { start: token, end: token + 1 }));
    rows.set(token, row);
    out.set(row, t * hidden);
  }
  if (embeddingScale !== 1) out.forEach((value, i) => (out[i] = value * embeddingScale));
  return out;
}
