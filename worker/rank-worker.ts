/**
 * One rank from setup to stop: loads its slice, joins the group, answers requests one after another. Knows nothing of
 * text, sampling or users. Read next: forward.ts.
 */
import { freemem, totalmem } from 'node:os';
import { ConfigError, InvariantError, invariant } from '../config/errors.ts';
import type { RankPlan } from '../config/shard-plan.ts';
import type { ProcessGroup } from '../collective/group.ts';
import type { CalibrationRequest, RankRequest, Ready, Reply, Step } from '../collective/messages.ts';
import type { Setup } from '../collective/setup.ts';
import type { Checkpoint } from '../model/checkpoint.ts';
import { openModelPath } from '../model/dummy.ts';
import { loadEnergyShares } from '../model/tpla/rotation.ts';
import { checkCollective } from './collective-check.ts';
import { checkLink } from './link-check.ts';
import { checkCompute } from './compute-check.ts';
import { openBackend, type Backend } from './backend.ts';
import { CalibrationSession } from './calibration/calibration-session.ts';
import { Forward } from './forward.ts';
import { LatentCache } from './latent-cache.ts';
import { MomentAccumulator } from './moments.ts';
import { MemoryWatch } from './peak-memory.ts';
import type { RankParts } from './rank-parts.ts';
import { FitSession } from './schemes/fit-session.ts';
import { loadReparameterization } from './schemes/load-reparameterization.ts';
import { WeightUploader } from './weight-uploader.ts';
import { loadWeights } from './weights.ts';

export class RankWorker implements AsyncDisposable {
  /** What this rank holds. */
  readonly ready: Omit<Ready, 'transport' | 'epoch'>;
  private readonly setup: Setup;
  private readonly memory = new MemoryWatch();
  private readonly backend: Backend;
  private readonly checkpoint: Checkpoint;
  private readonly parts: RankParts;
  private readonly group: ProcessGroup;
  private readonly forward: Forward;
  private calibration: CalibrationSession | undefined;
  private fit: FitSession | undefined;

  private constructor(
    setup: Setup,
    backend: Backend,
    checkpoint: Checkpoint,
    parts: RankParts,
    group: ProcessGroup,
    ready: Omit<Ready, 'transport' | 'epoch'>,
  ) {
    this.setup = setup;
    this.backend = backend;
    this.checkpoint = checkpoint;
    this.parts = parts;
    this.group = group;
    this.ready = ready;
    this.forward = new Forward(parts, setup.plan, rankPlanOf(setup), group, setup.options.payload);
  }

  /**
   * @param onLayer told how many layers are loaded
   * @throws ConfigError when the model differs from the coordinator's, or does not fit the backend
   */
  static async load(
    setup: Setup,
    group: ProcessGroup,
    onLayer: (layers: number) => Promise<void>,
  ): Promise<RankWorker> {
    const started = performance.now();
    const { options, plan } = setup;
    const checkpoint = await openModelPath(setup.modelPath);
    if (checkpoint.identity !== setup.modelIdentity)
      throw new ConfigError(
        `rank ${setup.rank}: ${setup.modelPath} has identity ${checkpoint.identity}, the coordinator's model has ${setup.modelIdentity}; give every rank the same files`,
      );
    const model = checkpoint.config;
    const backend = await openBackend(options);
    const { kernels, quantize } = backend;
    const uploader = new WeightUploader(checkpoint, kernels, options.weights, quantize);
    const rank = rankPlanOf(setup);
    const { rotations, fits } = await loadReparameterization(setup, checkpoint);
    const shares = options.norm === 'exact' ? undefined : await loadEnergyShares(setup.modelPath, model, rotations);
    const weights = await loadWeights(checkpoint, plan, rank, rotations, uploader, fits, shares, onLayer);
    const cache = new LatentCache(kernels, model, plan, rank, {
      type: options.cacheType,
      contextTokens: options.contextTokens,
      slots: options.slots,
      exactPrefill: options.prefill === 'exact',
    });
    return new RankWorker(setup, backend, checkpoint, { kernels, model, weights, cache }, group, {
      kind: 'ready',
      rank: setup.rank,
      loadMs: performance.now() - started,
      weightBytes: uploader.uploadedBytes,
      cacheBytesPerToken: cache.bytesPerToken,
      cacheBytes: cache.allocatedBytes,
      device: kernels.device,
      rssBytes: process.memoryUsage.rss(),
    });
  }

  /** @returns the reply, and its payload, which stays as it is until the next request */
  async answer(
    request: RankRequest,
    given?: Float32Array,
  ): Promise<{ reply: Reply; payload: Float32Array | undefined }> {
    const started = performance.now();
    const before = { ...this.group.stats };
    const { payload, latenciesUs } = await this.handle(request, given);
    const { waitMs, bytesSent, bytesReceived } = this.group.stats;
    const wait = waitMs - before.waitMs;
    const isDecode = request.kind === 'step' && request.phase === 'decode';
    return {
      reply: {
        kind: 'reply',
        rank: this.setup.rank,
        id: request.id,
        computeMs: performance.now() - started - wait,
        waitMs: wait,
        bytesSent: bytesSent - before.bytesSent,
        bytesReceived: bytesReceived - before.bytesReceived,
        ...this.memory.look(!isDecode),
        latenciesUs: latenciesUs ?? [],
      },
      payload,
    };
  }

  private async handle(
    request: RankRequest,
    given: Float32Array | undefined,
  ): Promise<{ payload?: Float32Array | undefined; latenciesUs?: number[] }> {
    switch (request.kind) {
      case 'step':
        checkStep(request, this.setup, this.parts.model.vocabSize);
        return { payload: await this.forward.run(request) };
      case 'moments':
        return { payload: this.moments(request.action, request.layer) };
      case 'calibration':
        return { payload: await this.calibrate(request, given) };
      case 'collectiveCheck':
        return { latenciesUs: await checkCollective(this.group, request.floats, request.count) };
      case 'linkCheck':
        return { latenciesUs: await checkLink(this.group, request) };
      case 'echo':
        return { payload: given };
      case 'computeCheck': {
        const { gigabytesPerSecond, gigaflopsPerSecond } = checkCompute(this.backend.kernels);
        return { payload: Float32Array.of(gigabytesPerSecond, gigaflopsPerSecond, freemem(), totalmem()) };
      }
    }
  }

  private moments(action: 'begin' | 'read' | 'end', layer: number): Float32Array | undefined {
    if (action === 'begin') {
      invariant(this.forward.moments === undefined, 'moments were begun twice');
      this.forward.moments = new MomentAccumulator(this.parts, this.setup.worldSize, this.setup.rank);
      return undefined;
    }
    const moments = this.forward.moments;
    invariant(moments !== undefined, `moments ${action} without begin`);
    if (action === 'read') return moments.read(layer);
    moments[Symbol.dispose]();
    this.forward.moments = undefined;
    return undefined;
  }

  private async calibrate(
    request: CalibrationRequest,
    given: Float32Array | undefined,
  ): Promise<Float32Array | undefined> {
    if (this.checkpoint.config.attention.kind === 'mla') return await this.fitDecode(request);
    if (request.action === 'begin') {
      invariant(this.calibration === undefined, 'a calibration was begun twice');
      const { rank, worldSize } = this.setup;
      const { windows, refits, near } = request;
      const part = { windows, refits, near, rank, worldSize };
      this.calibration = await CalibrationSession.begin(this.checkpoint, this.backend, part);
      return undefined;
    }
    invariant(this.calibration !== undefined, `calibration ${request.action} without begin`);
    if (request.action === 'statistics') return await this.calibration.statistics(request.layer);
    if (request.action === 'end') {
      this.calibration[Symbol.dispose]();
      this.calibration = undefined;
      return undefined;
    }
    if (request.action === 'follow') {
      await this.calibration.follow(request.layer);
      return undefined;
    }
    const { refit } = this.calibration;
    invariant(refit !== undefined, `calibration ${request.action} without refit`);
    const maps = given ?? new Float32Array(0);
    switch (request.action) {
      case 'sizes':
        refit.begin(request.ropeDim, request.latentDim);
        return undefined;
      case 'original':
        refit.original();
        return undefined;
      case 'attend':
        return refit.attend(maps);
      case 'values':
        return refit.values(maps);
      case 'advance':
        refit.advance(maps);
        return undefined;
      case 'align':
        refit.align();
        return undefined;
      case 'streams':
        return refit.streams();
      case 'restore':
        this.calibration.restore(request.layer, maps);
        return undefined;
    }
  }

  /** Of a model that has a latent, a calibration fits the corrections of cut attention. */
  private async fitDecode(request: CalibrationRequest): Promise<Float32Array | undefined> {
    switch (request.action) {
      case 'begin':
        invariant(this.fit === undefined, 'a fit was begun twice');
        this.fit = await FitSession.begin(this.checkpoint, this.backend, this.setup, this.group, request);
        return undefined;
      case 'statistics':
        invariant(this.fit !== undefined, 'a fit was not begun');
        return await this.fit.statistics(request.layer);
      case 'end':
        this.fit?.[Symbol.dispose]();
        this.fit = undefined;
        return undefined;
      case 'sizes':
      case 'original':
      case 'attend':
      case 'values':
      case 'advance':
      case 'align':
      case 'follow':
      case 'streams':
      case 'restore':
        throw new InvariantError(`calibration ${request.action} of a model that has a latent already`);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.fit?.[Symbol.dispose]();
    this.calibration?.[Symbol.dispose]();
    this.forward[Symbol.dispose]();
    this.forward.moments?.[Symbol.dispose]();
    this.backend.kernels[Symbol.dispose]();
    await this.checkpoint[Symbol.asyncDispose]();
  }
}

function rankPlanOf(setup: Setup): RankPlan {
  const plan = setup.plan.ranks[setup.rank];
  invariant(plan !== undefined, `the plan has ${setup.plan.ranks.length} ranks, this is rank ${setup.rank}`);
  return plan;
}

/** What would otherwise read or write another sequence's rows. */
function checkStep(step: Step, { options }: Setup, vocabSize: number): void {
  const slots = new Set<number>();
  for (const { slot, start, tokens } of step.sequences) {
    invariant(
      slot < options.slots && !slots.has(slot),
      `step ${step.id}: slot ${slot} of ${options.slots} is out of range or named twice`,
    );
    slots.add(slot);
    invariant(tokens.length > 0, `step ${step.id}: no tokens for slot ${slot}`);
    invariant(
      start + tokens.length <= options.contextTokens,
      `step ${step.id}: tokens ${start} to ${start + tokens.length} of slot ${slot} do not fit a context of ${options.contextTokens}`,
    );
    invariant(
      tokens.every((token) => token < vocabSize),
      `step ${step.id}: a token id is not below the vocabulary size ${vocabSize}`,
    );
  }
}
