/**
 * One rank's part of a calibration: holds the residual streams of its windows and takes them through the model layer by
 * layer, returning each layer's statistics. Ranks divide the windows, so nothing is exchanged; the coordinator adds the
 * payloads. Layers must be asked for in order. Read next: statistics-programs.ts.
 */
import { ConfigError, invariant } from '../../config/errors.ts';
import type { GqaConfig } from '../../config/model-config.ts';
import { size, type Range } from '../../config/shard-plan.ts';
import { splitStatistics, statisticsLength, type StatisticsShape } from '../../collective/statistics.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { toFloat32 } from '../../model/dequantize.ts';
import type { Backend } from '../backend.ts';
import { StatisticsPrograms } from './statistics-programs.ts';
import { WholeLayer } from './whole-layer.ts';

export class CalibrationSession implements Disposable {
  private readonly checkpoint: Checkpoint;
  private readonly backend: Backend;
  private readonly attention: GqaConfig;
  private readonly streams: readonly Float32Array[]; // [windows][T * D]
  private readonly tokens: number;
  private readonly layer: WholeLayer;
  private readonly programs: StatisticsPrograms;
  private nextLayer = 0;

  /**
   * @param windows of this rank, all of equal length; may be none
   * @throws ConfigError for a model without GQA attention
   */
  static async begin(
    checkpoint: Checkpoint,
    backend: Backend,
    windows: readonly (readonly number[])[],
  ): Promise<CalibrationSession> {
    const streams: Float32Array[] = [];
    for (const window of windows) streams.push(await embed(checkpoint, window));
    const tokens = windows[0]?.length ?? 1;
    invariant(
      windows.every((window) => window.length === tokens),
      'calibration windows differ in length',
    );
    return new CalibrationSession(checkpoint, backend, streams, tokens);
  }

  private constructor(checkpoint: Checkpoint, backend: Backend, streams: readonly Float32Array[], tokens: number) {
    const { attention, architecture } = checkpoint.config;
    if (attention.kind !== 'gqa')
      throw new ConfigError(`calibration: this ${architecture} model has latent attention already`);
    this.checkpoint = checkpoint;
    this.backend = backend;
    this.attention = attention;
    this.streams = streams;
    this.tokens = tokens;
    this.layer = new WholeLayer(checkpoint, backend, attention);
    this.programs = new StatisticsPrograms(backend.kernels, checkpoint.config, attention, this.layer, tokens);
  }

  /** @returns the payload of collective/statistics.ts, summed over this rank's windows */
  async statistics(layer: number): Promise<Float32Array> {
    invariant(layer === this.nextLayer, `calibration: layer ${layer} after layer ${this.nextLayer - 1}`);
    this.nextLayer++;
    const shape = this.shape();
    const payload = new Float32Array(statisticsLength(shape));
    if (this.streams.length === 0) return payload;
    await this.layer.load(layer);
    this.programs.begin();
    const sums = new PairSums(shape, this.checkpoint.config.rope.frequencies, this.tokens);
    const headsPerKvHead = shape.numHeads / this.attention.numKvHeads;
    for (const stream of this.streams) {
      this.programs.run(stream, ({ kvHead, queries }, turned, squares) =>
        sums.add(kvHead * headsPerKvHead, queries, turned, squares),
      );
    }
    const fields = splitStatistics(payload, shape);
    for (const field of ['keyMoment', 'valueMoment', 'inputMoment', 'queryMoments'] as const)
      this.backend.kernels.download(this.programs[field], fields[field]);
    sums.writeTo(fields);
    return payload;
  }

  [Symbol.dispose](): void {
    this.programs[Symbol.dispose]();
    this.layer[Symbol.dispose]();
  }

  private shape(): StatisticsShape {
    const { hiddenDim, numHeads } = this.checkpoint.config;
    return { hiddenDim, numHeads, headDim: this.attention.headDim };
  }
}

/** Float64 sums over pairs that need no matrix product any more. */
class PairSums {
  private readonly shape: StatisticsShape;
  private readonly cos: Float64Array; // [T, d / 2]
  private readonly sin: Float64Array; // [T, d / 2]
  private readonly scoreWeights: Float64Array; // [H]
  private readonly probabilityWeights: Float64Array; // [H]
  private readonly phaseCos: Float64Array; // [H, d / 2]
  private readonly phaseSin: Float64Array; // [H, d / 2]

  constructor(shape: StatisticsShape, frequencies: readonly number[], tokens: number) {
    const half = frequencies.length;
    this.shape = shape;
    const angle = (i: number): number => Math.floor(i / half) * (frequencies[i % half] ?? 0);
    this.cos = Float64Array.from({ length: tokens * half }, (_, i) => Math.cos(angle(i)));
    this.sin = Float64Array.from({ length: tokens * half }, (_, i) => Math.sin(angle(i)));
    this.scoreWeights = new Float64Array(shape.numHeads);
    this.probabilityWeights = new Float64Array(shape.numHeads);
    this.phaseCos = new Float64Array(shape.numHeads * half);
    this.phaseSin = new Float64Array(shape.numHeads * half);
  }

  /**
   * @param turned of some heads and queries: sums over t of w cos(theta_l t), w sin(theta_l t) and w [heads, m, d + 1]
   * @param squares sums over t of p^2 [heads, m]
   */
  add(firstHead: number, queries: Range, turned: Float32Array, squares: Float32Array): void {
    const half = this.shape.headDim / 2;
    const width = 2 * half + 1;
    for (let row = 0; row < squares.length; row++) {
      const head = firstHead + Math.floor(row / size(queries));
      const m = queries.start + (row % size(queries));
      this.probabilityWeights[head] = (this.probabilityWeights[head] ?? 0) + (squares[row] ?? 0);
      this.scoreWeights[head] = (this.scoreWeights[head] ?? 0) + (turned[row * width + 2 * half] ?? 0);
      for (let l = 0; l < half; l++) {
        const [cosM, sinM] = [this.cos[m * half + l] ?? 0, this.sin[m * half + l] ?? 0];
        const [withCos, withSin] = [turned[row * width + l] ?? 0, turned[row * width + half + l] ?? 0];
        const place = head * half + l;
        this.phaseCos[place] = (this.phaseCos[place] ?? 0) + cosM * withCos + sinM * withSin;
        this.phaseSin[place] = (this.phaseSin[place] ?? 0) + sinM * withCos - cosM * withSin;
      }
    }
  }

  writeTo(fields: ReturnType<typeof splitStatistics<Float32Array>>): void {
    fields.scoreWeights.set(this.scoreWeights);
    fields.probabilityWeights.set(this.probabilityWeights);
    fields.phaseCos.set(this.phaseCos);
    fields.phaseSin.set(this.phaseSin);
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
