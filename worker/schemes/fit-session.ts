/**
 * Fits the corrections of scheme tpla (model/tpla/decode-fit.ts), layer by layer, on the stream that cut attention will
 * see: all earlier layers are cut and corrected already. Every rank holds the whole model and takes its own windows, and
 * sums are all-reduced, so that all ranks solve the same equations. The first quarter of a window is its prompt, exact.
 *
 * For a layer, three passes over the windows: moments of the latents; of the queries, which with them say in what order the
 * columns lose least when cut; then mixtures of cut attention against outputs of exact attention on the ORIGINAL stream. Refused: layers without nope
 * part, capped scores, norms behind a sublayer. Read next: fit-programs.ts (what is computed), fit-solve.ts (the equations).
 */
import { ConfigError, invariant } from '../../config/errors.ts';
import type { MlaConfig } from '../../config/model-config.ts';
import { routes } from '../../config/model-config.ts';
import { fitSteps, type FitStep } from '../../config/schemes.ts';
import { cachedLatent, latentWidth, planShards, type Range } from '../../config/shard-plan.ts';
import type { ProcessGroup } from '../../collective/group.ts';
import { segmentsWithin, sumSegments, windowsOfRank } from '../../collective/window-sums.ts';
import type { CalibrationRequest } from '../../collective/messages.ts';
import type { Setup } from '../../collective/setup.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { fitLength, splitFit, type FitShape } from '../../model/tpla/decode-fit.ts';
import { identity } from '../../model/transmla/dense.ts';
import { loadRotations } from '../../model/tpla/rotation.ts';
import type { Backend } from '../backend.ts';
import { LatentCache } from '../latent-cache.ts';
import { EmbeddingProgram } from '../programs.ts';
import type { RankParts } from '../rank-parts.ts';
import { RoutedExperts } from '../routed-experts.ts';
import { WeightUploader } from '../weight-uploader.ts';
import { loadWeights } from '../weights.ts';
import type { FitGroup, FitSizes } from './fit-formulas.ts';
import { addLogRatios } from './fit-offsets.ts';
import { FitPrograms } from './fit-programs.ts';
import { OrderMoments } from './fit-order.ts';
import { KeyMoments, ValueMoments, rotatedMatrices, type LayerMatrices } from './fit-solve.ts';

/** Windows of a rank that are enough for one constant per head, and for second moments of queries. */
const offsetWindows = 2;
const orderWindows = 4;

interface Stream {
  /** The model as it is. [T, hidden] */
  readonly exact: Float32Array;
  /** With cut attention in all earlier layers. [T, hidden] */
  readonly cut: Float32Array;
}

export class FitSession implements Disposable {
  private readonly parts: RankParts;
  private readonly group: ProcessGroup;
  private readonly shape: FitShape;
  private readonly sizes: FitSizes;
  private readonly streams: readonly Stream[];
  private readonly experts: RoutedExperts;
  private readonly segments: readonly Range[];
  private readonly steps: ReadonlySet<FitStep>;

  static async begin(
    checkpoint: Checkpoint,
    backend: Backend,
    setup: Setup,
    group: ProcessGroup,
    { windows, without = [] }: Pick<Extract<CalibrationRequest, { action: 'begin' }>, 'windows' | 'without'>, // of all ranks
  ): Promise<FitSession> {
    const model = checkpoint.config;
    const config = supported(checkpoint);
    const { plan: cut, options } = setup;
    if (cut.scheme !== 'tpla' || cut.latentGroups < 2)
      throw new ConfigError(`corrections are for scheme tpla with 2 latent groups or more, not for ${cut.scheme}`);
    const plan = planShards(model, { worldSize: 1, scheme: 'mla', latentGroups: 1, blockSize: 1 });
    const rank = plan.ranks[0];
    invariant(rank !== undefined, 'a plan without ranks');
    const { kernels, quantize } = backend;
    const uploader = new WeightUploader(checkpoint, kernels, 'f32', quantize);
    const rotations = await loadRotations(setup.modelPath, model, options.reparameterization);
    const weights = await loadWeights(checkpoint, plan, rank, rotations, uploader, undefined, undefined);
    const cacheOptions = { type: 'f32', contextTokens: 1, slots: 1, exactPrefill: false } as const;
    const parts = { kernels, model, weights, cache: new LatentCache(kernels, model, plan, rank, cacheOptions) };
    const tokens = windows[0]?.length ?? 1;
    invariant(
      windows.every((window) => window.length === tokens),
      'windows of a fit differ in length',
    );
    const sizes: FitSizes = {
      tokens,
      prompt: Math.floor(tokens / 4),
      exactTokens: cut.exactTokens,
      groups: groupsOf(setup),
      overlap: cut.ranks[0]?.sharedLatent.end ?? 0,
      config,
      numHeads: model.numHeads,
    };
    using embedding = new EmbeddingProgram(parts, tokens);
    const own = windowsOfRank(windows.length, group.worldSize, group.rank);
    const streams = windows.slice(own.start, own.end).map((window) => {
      const exact = new Float32Array(tokens * model.hiddenDim);
      embedding.run(Int32Array.from(window), exact);
      return { exact, cut: exact.slice() };
    });
    const segments = segmentsWithin(own, windows.length);
    // Another rotation that the user chose stays as it is, and so does the converter's order, which is better (docs/log.md).
    const isOrdered = options.reparameterization === 'weighted' && config.latentNormEps !== null;
    const steps = fitSteps.filter((step) => !without.includes(step) && (step !== 'order' || isOrdered));
    return new FitSession(parts, group, sizes, streams, segments, new RoutedExperts(parts, rank), new Set(steps));
  }

  private constructor(
    parts: RankParts,
    group: ProcessGroup,
    sizes: FitSizes,
    streams: readonly Stream[],
    segments: readonly Range[],
    experts: RoutedExperts,
    steps: ReadonlySet<FitStep>,
  ) {
    this.parts = parts;
    this.group = group;
    this.sizes = sizes;
    this.streams = streams;
    this.experts = experts;
    this.segments = segments;
    this.steps = steps;
    const { nopeDim, valueDim, latentDim } = sizes.config;
    const { numHeads, hiddenDim } = parts.model;
    this.shape = { numHeads, nopeDim, valueDim, latentDim, latentGroups: sizes.groups.length, hiddenDim };
  }

  /** @returns the layer's fit, equal on all ranks, as window 0's part of a sum over windows (collective/window-sums.ts) */
  async statistics(layer: number): Promise<Float32Array> {
    using programs = new FitPrograms(this.parts, this.sizes, layer);
    const payload = new Float32Array(fitLength(this.shape));
    const fit = splitFit(payload, this.shape);
    const moments = new KeyMoments(this.sizes);
    for (const { cut } of this.streams) moments.add(programs.latentMoments(cut));
    await this.group.allReduceSum(moments.sums, `fit of layer ${layer}, latents`);
    await this.fitRotation(programs, moments, layer, fit.rotation);
    const matrices = rotatedMatrices(programs.matrices(), fit.rotation, this.sizes);
    moments.rotate(fit.rotation);
    moments.solve(matrices, fit.keys, fit.offsets, this.steps.has('keys'));
    programs.useKeys(fit.keys, fit.offsets);
    if (this.steps.has('offsets')) await this.fitOffsets(programs, layer, fit.offsets);
    programs.useKeys(fit.keys, fit.offsets);
    await this.fitValues(programs, matrices, layer, fit);
    return sumSegments(this.segments, payload.length, (window) =>
      window === 0 ? Float64Array.from(payload) : new Float64Array(payload.length),
    );
  }

  /** In what order the columns lose least when they are cut; as they stand where the user chose another rotation. */
  private async fitRotation(
    programs: FitPrograms,
    { covariance }: KeyMoments,
    layer: number,
    rotation: Float32Array,
  ): Promise<void> {
    rotation.set(Float32Array.from(identity(this.sizes.config.latentDim).data));
    if (this.steps.has('order')) {
      const moments = new OrderMoments(this.sizes);
      for (const { cut } of this.streams.slice(0, orderWindows)) moments.add(programs.queryMoments(cut));
      await this.group.allReduceSum(moments.sums, `fit of layer ${layer}, order of columns`);
      const { valueUp } = programs.matrices();
      const outputOf = (head: number): Float32Array => programs.outputOfLatent(valueUp, head);
      rotation.set(moments.solve(covariance, outputOf, this.parts.model.hiddenDim));
    }
    programs.useRotation(rotation);
  }

  /** The constant that makes old tokens weigh as much as under exact attention; nothing where all tokens are old. */
  private async fitOffsets(programs: FitPrograms, layer: number, offsets: Float32Array): Promise<void> {
    const { groups, numHeads, exactTokens, config } = this.sizes;
    if (exactTokens.window + exactTokens.sinks === 0) return;
    const sums = new Float32Array(groups.length * numHeads * 2); // sum of weights, of weighted log ratios
    for (const { cut } of this.streams.slice(0, offsetWindows)) addLogRatios(programs.oldShares(cut), this.sizes, sums);
    await this.group.allReduceSum(sums, `fit of layer ${layer}, offsets`);
    for (let i = 0; i < groups.length * numHeads; i++) {
      const weight = sums[2 * i] ?? 0;
      const place = i * (config.nopeDim + 1) + config.nopeDim;
      offsets[place] = (offsets[place] ?? 0) + (weight > 0 ? (sums[2 * i + 1] ?? 0) / weight : 0);
    }
  }

  /** Refits W_UV, and takes both streams through the layer. */
  private async fitValues(
    programs: FitPrograms,
    matrices: LayerMatrices,
    layer: number,
    fit: Record<'values' | 'bias', Float32Array>,
  ): Promise<void> {
    const moments = new ValueMoments(this.sizes);
    const kept = this.streams.map(({ exact, cut }) => {
      const target = programs.exactHeads(exact); // [heads, T, v]
      const mixtures = programs.mixtures(cut);
      moments.add(programs.gramOf(mixtures.mixed, lessNear(target, mixtures.near)));
      return { target, mixtures };
    });
    await this.group.allReduceSum(moments.sums, `fit of layer ${layer}, values`);
    const headBias = moments.solve(matrices, fit.values, this.steps.has('values')); // [heads, v]
    fit.bias.set(programs.outputOf(headBias));
    programs.useValues(fit.values, headBias);
    this.streams.forEach(({ exact, cut }, i) => {
      const { target, mixtures } = kept[i] ?? {};
      invariant(target !== undefined && mixtures !== undefined, `window ${i} was not kept`);
      const delta = programs.deltaOfHeads(target);
      addInPlace(exact, delta);
      addInPlace(cut, programs.deltaOfMixtures(mixtures, delta));
      for (const x of [exact, cut]) addInPlace(x, this.feedForward(programs, layer, x));
    });
  }

  private feedForward(programs: FitPrograms, layer: number, x: Float32Array): Float32Array {
    if (!routes(this.parts.model, layer)) return programs.feedForward(x);
    const delta = new Float32Array(x.length);
    this.experts.run(layer, x, delta);
    return delta;
  }

  [Symbol.dispose](): void {
    this.experts[Symbol.dispose]();
  }
}

/** @throws ConfigError for a model whose attention the programs do not cover */
function supported({ config: model }: Checkpoint): MlaConfig {
  const { attention } = model;
  invariant(attention.kind === 'mla', 'a fit of a model without a latent');
  const missing = [
    attention.nopeDim === 0 ? 'keys without position' : undefined,
    attention.scoreSoftcap > 0 ? 'scores without a cap' : undefined,
    model.postNorms ? 'sublayers without a norm behind them' : undefined,
    model.slidingWindows.some((window) => window > 0) ? 'layers that see all tokens' : undefined,
  ].filter((text) => text !== undefined);
  if (missing.length === 0) return attention;
  throw new ConfigError(`corrections need ${missing.join(', ')}; this ${model.architecture} model cannot have them`);
}

function groupsOf({ plan }: Setup): FitGroup[] {
  const places = plan.worldSize / plan.latentGroups;
  let start = 0;
  return Array.from({ length: plan.latentGroups }, (_, group) => {
    const rank = plan.ranks[group * places];
    invariant(rank !== undefined, `no rank of latent group ${group}`);
    const place = { start, end: start + latentWidth(rank) };
    start = place.end;
    return { columns: cachedLatent(rank), place };
  });
}

/** @param near of length 0 where no tokens are near */
function lessNear(target: Float32Array, near: Float32Array): Float32Array {
  return near.length === 0 ? target : target.map((value, i) => value - (near[i] ?? 0));
}

function addInPlace(x: Float32Array, delta: Float32Array): void {
  for (let i = 0; i < x.length; i++) x[i] = (x[i] ?? 0) + (delta[i] ?? 0);
}
