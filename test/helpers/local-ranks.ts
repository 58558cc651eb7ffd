/**
 * All ranks of a cluster inside this process, over the in-process group: the worker's code and arithmetic without
 * sockets and processes, for parity tests.
 */
import { chooseScheme, defaultLatentGroups, type Scheme } from '../../config/schemes.ts';
import { planShards, size, type ExactTokens, type ExpertSharding, type ShardPlan } from '../../config/shard-plan.ts';
import { createLocalGroups } from '../../collective/local-group.ts';
import type { Step } from '../../collective/messages.ts';
import type { Setup, WorkerOptions } from '../../collective/setup.ts';
import { openCheckpoint } from '../../model/open.ts';
import { RankWorker } from '../../worker/rank-worker.ts';

export interface LocalRanks extends AsyncDisposable {
  readonly plan: ShardPlan;
  readonly workers: readonly RankWorker[];
  /** Rows of logits over the whole vocabulary. [rows, vocabSize] */
  logits(step: Omit<Step, 'kind' | 'id'>): Promise<Float32Array>;
  step(step: Omit<Step, 'kind' | 'id'>): Promise<(Float32Array | undefined)[]>;
}

export const exactOptions: WorkerOptions = {
  backend: 'reference',
  device: '',
  threads: 1,
  transport: 'auto',
  weights: 'f32',
  cacheType: 'f32',
  contextTokens: 512,
  slots: 2,
  maxStepTokens: 512,
  reparameterization: 'weighted',
  corrections: '',
  prefill: 'exact',
  norm: 'exact',
  timeoutMs: 20_000,
  payload: 'f32',
};

export async function startLocalRanks(
  modelPath: string,
  worldSize: number,
  options: Partial<WorkerOptions> & {
    scheme?: Scheme;
    latentGroups?: number;
    expertSharding?: ExpertSharding;
    exactTokens?: ExactTokens;
    latentOverlap?: number;
  } = {},
): Promise<LocalRanks> {
  const { scheme: wanted, latentGroups, expertSharding, exactTokens, latentOverlap, ...rest } = options;
  const checkpoint = await openCheckpoint(modelPath);
  const { config: model, identity } = checkpoint;
  await checkpoint[Symbol.asyncDispose]();
  const scheme = wanted ?? chooseScheme(model, worldSize, true).scheme;
  const plan = planShards(model, {
    worldSize,
    scheme,
    latentGroups: latentGroups ?? defaultLatentGroups(scheme, worldSize),
    exactTokens: exactTokens ?? { sinks: 0, window: 0 },
    latentOverlap: latentOverlap ?? 0,
    blockSize: 1,
    ...(expertSharding === undefined ? {} : { expertSharding }),
  });
  const groups = createLocalGroups(worldSize);
  const workers = await Promise.all(
    groups.map((group) => {
      const setup: Setup = {
        kind: 'setup',
        chaos: false,
        rank: group.rank,
        worldSize,
        epoch: 0,
        modelPath,
        modelIdentity: identity,
        plan,
        options: { ...exactOptions, ...rest },
        ringEndpoints: [],
        ringKeys: [],
        hosts: [],
        runId: 'local',
      };
      return RankWorker.load(setup, group, () => Promise.resolve());
    }),
  );
  let id = 0;
  const step: LocalRanks['step'] = async (request) => {
    id++;
    const answers = await Promise.all(workers.map((worker) => worker.answer({ kind: 'step', id, ...request })));
    return answers.map((answer) => answer.payload);
  };
  return {
    plan,
    workers,
    step,
    async logits(request) {
      return joinVocabulary(plan, model.vocabSize, await step(request));
    },
    async [Symbol.asyncDispose]() {
      for (const worker of workers) await worker[Symbol.asyncDispose]();
    },
  };
}

/** Columns of every rank side by side. [rows, vocabSize] */
function joinVocabulary(plan: ShardPlan, vocabSize: number, parts: (Float32Array | undefined)[]): Float32Array {
  const first = plan.ranks[0];
  const rows = first === undefined ? 0 : (parts[0]?.length ?? 0) / size(first.vocab);
  const joined = new Float32Array(rows * vocabSize);
  plan.ranks.forEach(({ vocab }, rank) => {
    for (let row = 0; row < rows; row++)
      joined.set(parts[rank]!.subarray(row * size(vocab), (row + 1) * size(vocab)), row * vocabSize + vocab.start);
  });
  return joined;
}
