/**
 * A cluster with everything that serves requests on it: supervisor, scheduler, text and numbers. The HTTP server and the
 * library stand on this. Read next: supervisor.ts, scheduler.ts, http/server.ts, library.ts.
 */
import { basename } from 'node:path';
import type { ClusterConfig } from '../config/cluster.ts';
import type { Checkpoint } from '../model/checkpoint.ts';
import { Activity } from './activity.ts';
import { Metrics } from './http/metrics.ts';
import { Scheduler } from './scheduler.ts';
import { Supervisor } from './supervisor.ts';
import { openText, type ModelText } from './text.ts';

export interface ServingOptions {
  readonly config: ClusterConfig;
  /** Open until disposal: ranks that are started again are planned from it. */
  readonly checkpoint: Checkpoint;
  /** undefined: the model's own template. */
  readonly chatTemplateFile: string | undefined;
  /** Requests that may wait for a slot. */
  readonly maxQueued: number;
  readonly log: (line: string) => void;
  /** See ClusterOptions. */
  readonly onLoading?: (done: number, total: number) => void;
  /** Ends the start; later it means nothing. */
  readonly signal: AbortSignal;
}

export interface Serving extends AsyncDisposable {
  readonly supervisor: Supervisor;
  readonly scheduler: Scheduler;
  readonly activity: Activity;
  readonly metrics: Metrics;
  readonly text: ModelText;
  /** The model file's or folder's name, as clients call it. */
  readonly modelName: string;
}

/** Sequences at once where the cluster file does not say. */
export const defaultSlots = 4;

/** @throws ConfigError and PeerError as Cluster.start; nothing is left behind then */
export async function startServing(options: ServingOptions): Promise<Serving> {
  const { checkpoint, log, signal, onLoading } = options;
  const config = {
    ...options.config,
    cache: { ...options.config.cache, slots: options.config.cache.slots || defaultSlots },
  };
  const text = await openText(checkpoint.path, options.chatTemplateFile);
  const supervisor = await whileStarting(signal, (starting) =>
    Supervisor.start({ checkpoint, config, log, signal: starting, ...(onLoading === undefined ? {} : { onLoading }) }),
  );
  const activity = new Activity();
  const metrics = new Metrics();
  const scheduler = new Scheduler(supervisor, {
    maxQueued: options.maxQueued,
    onStep(turn, result, ms) {
      activity.step(turn, result);
      metrics.step(turn.phase, ms);
    },
    recover: (error) => supervisor.recover(error),
  });
  metrics.watch(supervisor, scheduler, activity);
  return {
    supervisor,
    scheduler,
    activity,
    metrics,
    text,
    modelName: basename(checkpoint.path).replace(/\.(gguf|safetensors)$/, ''),
    async [Symbol.asyncDispose]() {
      await scheduler[Symbol.asyncDispose]();
      await supervisor[Symbol.asyncDispose]();
    },
  };
}

/** A cluster ends when its signal is aborted; a server that was told to stop first lets its requests end. */
export async function whileStarting<T>(signal: AbortSignal, start: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const abort = (): void => controller.abort(signal.reason);
  signal.throwIfAborted();
  signal.addEventListener('abort', abort, { once: true });
  try {
    return await start(controller.signal);
  } finally {
    signal.removeEventListener('abort', abort);
  }
}
