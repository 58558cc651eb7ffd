/**
 * A fault drill: greedy generations run over and over on a supervised cluster while one rank after another is killed,
 * frozen or made to misbehave, and every token is compared with an undisturbed run of the same cluster before.
 * Read next: injector.ts (the faults), load.ts (the generations), ../supervisor.ts (recovery).
 */
import type { ClusterConfig } from '../../config/cluster.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { seededRandom } from '../sampler.ts';
import { Scheduler } from '../scheduler.ts';
import { whileStarting } from '../serving.ts';
import type { ClusterEvent } from '../cluster-events.ts';
import { Supervisor } from '../supervisor.ts';
import { openText } from '../text.ts';
import { Injector, type DrillName, type Fault } from './injector.ts';
import { Load, type LoadResult } from './load.ts';

export interface DrillOptions {
  readonly checkpoint: Checkpoint;
  readonly config: ClusterConfig;
  /** They take turns. */
  readonly drills: readonly DrillName[];
  /** Faults in all. */
  readonly count: number;
  /** No new fault after this long. */
  readonly seconds: number;
  /** As many run at once. */
  readonly prompts: readonly string[];
  /** Tokens of each answer. */
  readonly maxTokens: number;
  readonly seed: number;
  readonly log: (line: string) => void;
  readonly signal: AbortSignal;
}

export interface DrillResult extends LoadResult {
  readonly faults: readonly Fault[];
}

/** Frames are damaged and lost on sockets; shared memory has neither. */
const needSockets: readonly DrillName[] = ['garble', 'cut'];
/** Lost frames are noticed by nothing but their absence; a drill waits less for them. */
const cutTimeoutMs = 2000;

/** @throws PeerError when the cluster does not recover; ConfigError and PeerError as Cluster.start */
export async function runDrill(options: DrillOptions): Promise<DrillResult> {
  const { checkpoint, prompts, maxTokens, signal, log } = options;
  const text = await openText(checkpoint.path);
  let hear: (event: ClusterEvent) => void = () => undefined;
  // Later an interruption is no fault to recover from: the injector ends the drill.
  await using supervisor = await whileStarting(signal, (starting) =>
    Supervisor.start({
      checkpoint,
      config: configFor(options),
      log,
      signal: starting,
      allowChaos: true,
      onEvent: (event) => hear(event),
    }),
  );
  let step: () => void = () => undefined;
  await using scheduler = new Scheduler(supervisor, {
    maxQueued: prompts.length,
    recover: (error) => supervisor.recover(error),
    onStep: () => step(),
  });
  const load = new Load(scheduler, text, prompts, maxTokens);
  await load.recordUndisturbed();
  const injector = new Injector(supervisor, seededRandom(options.seed), maxTokens, signal);
  hear = (event) => injector.hear(event);
  step = () => injector.step();
  const running = load.run();
  const faults: Fault[] = [];
  try {
    const endAt = performance.now() + 1000 * options.seconds;
    while (faults.length < options.count && performance.now() < endAt) {
      const drill = options.drills[faults.length % options.drills.length];
      if (drill === undefined) break;
      const fault = await injector.inject(drill);
      log(`drill: ${describe(fault)}`);
      faults.push(fault);
    }
  } finally {
    load.stop();
    await running;
  }
  return { faults, ...load.result() };
}

function configFor({ config, drills, prompts }: DrillOptions): ClusterConfig {
  const onSockets = drills.some((drill) => needSockets.includes(drill));
  return {
    ...config,
    cache: { ...config.cache, slots: prompts.length },
    collective: onSockets ? { ...config.collective, transport: 'zeromq', timeoutMs: cutTimeoutMs } : config.collective,
    // Faults are what a drill is for: no ceiling stops it.
    faults: { ...config.faults, restarts: Infinity },
  };
}

function describe({ drill, rank, detectedMs, recoveredMs, cause }: Fault): string {
  if (detectedMs === undefined) return `${drill} rank ${rank}: needed no recovery`;
  return `${drill} rank ${rank}: detected after ${Math.round(detectedMs)} ms, recovered after ${Math.round(recoveredMs ?? NaN)} ms: ${cause?.split('\n')[0]}`;
}
