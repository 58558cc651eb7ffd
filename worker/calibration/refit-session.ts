/**
 * One rank's part of a layer-by-layer refit: two residual streams for each of its windows, that of the original model and
 * that of the converted one. For each layer, in this order: original (targets), attention (normal equations of W_UV),
 * values (normal equations of W_O), advance. Statistics of the layer are taken before, on the converted stream, by
 * calibration-session.ts, which has loaded the layer's weights. Sums as in collective/window-sums.ts.
 * Read next: refit-programs.ts.
 */
import { invariant } from '../../config/errors.ts';
import type { GqaConfig, ModelConfig } from '../../config/model-config.ts';
import type { ExactTokens, Range } from '../../config/shard-plan.ts';
import {
  fieldsLength,
  layerMapFields,
  outputEquationFields,
  outputMapFields,
  type RefitShape,
  splitFields,
  valueEquationFields,
  valueMapFields,
} from '../../collective/refit-maps.ts';
import { sumSegments } from '../../collective/window-sums.ts';
import type { Kernels, Tensor } from '../kernels/kernels.ts';
import { bytesOf } from '../rank-parts.ts';
import { NearPart } from './near-part.ts';
import { RefitPrograms } from './refit-programs.ts';
import type { WholeLayer } from './whole-layer.ts';

/** The windows of one rank. */
export interface OwnWindows {
  /** Index among all windows of the first one. */
  readonly first: number;
  /** The converted model's where layers are refitted. [windows][T * D] */
  readonly streams: readonly Float32Array[];
  readonly segments: readonly Range[];
  readonly tokens: number;
}

/** Of one window and layer. */
interface Attended {
  readonly targets: Float32Array; // [T, H d]
  features: Float32Array; // [H, T, r]
  /** What near tokens give; of length 0 without. [T, H d] */
  readonly near: Float32Array;
  readonly heads: Float32Array; // [T, H d]
  readonly outputs: Float32Array; // [T, D] of the original attention
}

export class RefitSession implements Disposable {
  private readonly kernels: Kernels;
  private readonly model: ModelConfig;
  private readonly attention: GqaConfig;
  private readonly layer: WholeLayer;
  private readonly own: OwnWindows;
  private readonly originals: readonly Float32Array[]; // [windows][T * D]
  private readonly attended: readonly Attended[]; // [windows]
  private programs: RefitPrograms | undefined;
  private readonly near: NearPart | undefined;
  private shape: RefitShape | undefined;

  constructor(
    kernels: Kernels,
    model: ModelConfig,
    attention: GqaConfig,
    layer: WholeLayer,
    own: OwnWindows,
    near: ExactTokens | undefined,
  ) {
    this.kernels = kernels;
    this.model = model;
    this.attention = attention;
    this.layer = layer;
    this.own = own;
    this.originals = own.streams.map((stream) => stream.slice());
    const size = own.tokens * model.numHeads * attention.headDim;
    this.attended = own.streams.map((stream) => ({
      targets: new Float32Array(size),
      outputs: new Float32Array(stream.length),
      features: new Float32Array(0),
      near: new Float32Array(near === undefined ? 0 : size),
      heads: new Float32Array(size),
    }));
    this.near = near && new NearPart(kernels, model, attention, layer, near, own.tokens);
  }

  /** Sizes of every layer that follows. */
  begin(ropeDim: number, latentDim: number): void {
    const { hiddenDim, numHeads } = this.model;
    const { numKvHeads, headDim } = this.attention;
    this.shape = { hiddenDim, numHeads, numKvHeads, headDim, ropeDim, latentDim };
    this.programs?.[Symbol.dispose]();
    for (const attended of this.attended) attended.features = new Float32Array(numHeads * this.own.tokens * latentDim);
    this.programs = new RefitPrograms(
      this.kernels,
      this.model,
      this.attention,
      this.layer,
      this.shape,
      this.own.tokens,
      this.near,
    );
  }

  /** Takes the original streams through the layer and keeps the heads' outputs as targets. */
  original(): void {
    const { programs } = this.started();
    programs.begin();
    this.attended.forEach(({ targets, outputs }, i) =>
      programs.runOriginal(this.window(this.originals, i), targets, outputs),
    );
  }

  /** @param maps layerMapFields  @returns valueEquationFields, by segment */
  attend(maps: Float32Array): Float32Array {
    const { programs, shape } = this.started();
    const fields = splitFields(maps, layerMapFields(shape));
    const { keyUp, meanValue, farSlope, ...others } = fields;
    if (this.near !== undefined) {
      this.upload(this.near.meanValue, meanValue);
      this.upload(this.near.slope, farSlope);
    }
    this.upload(programs.at.keyUp, keyUp);
    for (const name of ['query', 'latentDown', 'queryBias', 'latentDownBias', 'frequencies'] as const)
      this.upload(programs.at[name], others[name]);
    const length = fieldsLength(valueEquationFields(shape));
    return sumSegments(this.own.segments, length, (window) => this.valueEquations(window - this.own.first));
  }

  /** @param maps valueMapFields  @returns outputEquationFields, by segment */
  values(maps: Float32Array): Float32Array {
    const { programs, shape } = this.started();
    this.upload(programs.at.valueUp, splitFields(maps, valueMapFields(shape)).valueUp);
    const length = fieldsLength(outputEquationFields(shape));
    return sumSegments(this.own.segments, length, (window) => this.outputEquations(window - this.own.first));
  }

  /** Takes the converted streams through the layer. @param maps outputMapFields */
  advance(maps: Float32Array): void {
    const { programs, shape } = this.started();
    const { output, outputBias } = splitFields(maps, outputMapFields(shape));
    this.upload(programs.at.output, output);
    this.upload(programs.at.outputBias, outputBias);
    this.attended.forEach(({ heads }, i) => programs.runAdvance(this.window(this.own.streams, i), heads));
  }

  /** Takes the converted streams to where the original ones are. */
  align(): void {
    this.own.streams.forEach((stream, i) => stream.set(this.window(this.originals, i)));
  }

  /** [own windows][original, converted][T * D] */
  streams(): Float32Array {
    const size = this.own.streams[0]?.length ?? 0;
    const out = new Float32Array(this.originals.length * 2 * size);
    this.originals.forEach((original, i) => {
      out.set(original, 2 * i * size);
      out.set(this.window(this.own.streams, i), (2 * i + 1) * size);
    });
    return out;
  }

  /** @param all of every rank's windows, as `streams` gives them */
  restore(all: Float32Array): void {
    const { first, streams } = this.own;
    streams.forEach((stream, i) => {
      const start = 2 * (first + i) * stream.length;
      this.window(this.originals, i).set(all.subarray(start, start + stream.length));
      stream.set(all.subarray(start + stream.length, start + 2 * stream.length));
    });
  }

  [Symbol.dispose](): void {
    this.programs?.[Symbol.dispose]();
    this.near?.[Symbol.dispose]();
  }

  private valueEquations(i: number): Float64Array {
    const { programs, shape } = this.started();
    const { headDim } = shape;
    const attended = this.window(this.attended, i);
    const fields = valueEquationFields(shape);
    const sums = new Float64Array(fieldsLength(fields));
    const equations = splitFields(sums, fields);
    const { targets, features, near } = attended;
    const missing = programs.runAttention(this.window(this.own.streams, i), targets, features, near, equations);
    addEnergies(missing, headDim, equations.energy);
    return sums;
  }

  private outputEquations(i: number): Float64Array {
    const { programs, shape } = this.started();
    const attended = this.window(this.attended, i);
    const fields = outputEquationFields(shape);
    const sums = new Float64Array(fieldsLength(fields));
    const equations = splitFields(sums, fields);
    programs.runValues(attended.features, attended.near, attended.outputs, attended.heads, equations);
    addEnergies(attended.outputs, attended.outputs.length, equations.energy);
    return sums;
  }

  private started(): { programs: RefitPrograms; shape: RefitShape } {
    const { programs, shape } = this;
    invariant(programs !== undefined && shape !== undefined, 'refit before its sizes');
    return { programs, shape };
  }

  private window<Value>(values: readonly Value[], i: number): Value {
    const value = values[i];
    invariant(value !== undefined, `no window ${i} of ${values.length}`);
    return value;
  }

  private upload(tensor: Tensor, values: Float32Array): void {
    this.kernels.upload(tensor, bytesOf(values));
  }
}

/** @param values runs of `length` for each of the sums in turn  @param energy sums of squares, grow */
function addEnergies(values: Float32Array, length: number, energy: Float64Array): void {
  for (let start = 0; start < values.length; start += length) {
    let sum = 0;
    for (let i = start; i < start + length; i++) sum += (values[i] ?? 0) ** 2;
    const place = (start / length) % energy.length;
    energy[place] = (energy[place] ?? 0) + sum;
  }
}
