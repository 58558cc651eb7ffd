/**
 * From flags to a running cluster, the part that every command with ranks shares: configuration, model file, checkpoint,
 * processes. Disposal undoes all of it in reverse order.
 */
import type { ClusterConfig } from '../config/cluster.ts';
import { loadClusterConfig, type ClusterFlags } from '../config/load.ts';
import type { Checkpoint } from '../model/checkpoint.ts';
import { openCheckpoint } from '../model/open.ts';
import { Cluster } from './cluster.ts';
import { cachedConversion } from './convert/cached-conversion.ts';
import { type ConversionFlags, conversionSettings, refuseConversionFlags } from './convert/conversion-flags.ts';
import type { CommandContext } from './command-context.ts';
import { resolveModel } from './fetch.ts';
import { LoadingProgress } from './progress.ts';

/** What clusterFlags of flags.ts gives. */
export interface SessionFlags extends ClusterFlags, ConversionFlags {
  readonly config?: string | undefined;
  /** Run the model's conversion, made on first use. */
  readonly convert?: boolean | undefined;
}

export interface OpenModel extends AsyncDisposable {
  readonly config: ClusterConfig;
  readonly checkpoint: Checkpoint;
}

export interface Session extends OpenModel {
  readonly cluster: Cluster;
}

/** Configuration and checkpoint, without any process. @param open openSizes where a config.json without weights will do */
export async function openModel(
  flags: SessionFlags,
  context: CommandContext,
  open: (path: string) => Promise<Checkpoint> = openCheckpoint,
): Promise<OpenModel> {
  const model = flags.model ?? (flags.config === undefined ? 'default' : undefined);
  const config = await loadClusterConfig({ file: flags.config, flags: { ...flags, model } });
  const converts = flags.convert === true;
  if (!converts) refuseConversionFlags(flags);
  const source = await resolveModel(config.model, context);
  const path = converts ? await cachedConversion(source, conversionSettings(flags), config, context) : source;
  const checkpoint = await open(path);
  return { config, checkpoint, [Symbol.asyncDispose]: () => checkpoint[Symbol.asyncDispose]() };
}

/** A command that nothing repairs is not given up because a loaded machine answers late; a process that ends is noticed at once. */
const patientHeartbeatMs = 5000;

/**
 * A cluster without a supervisor, for commands that end with it.
 * @param options.showsLoading a bar while the ranks load; two bars at once would write over each other
 */
export async function startCluster(
  { checkpoint, config }: OpenModel,
  { log, signal }: CommandContext,
  { showsLoading } = { showsLoading: true },
): Promise<Cluster> {
  using loading = new LoadingProgress();
  const onLoading = showsLoading ? loading.report : (): void => undefined;
  const heartbeatMs = Math.max(config.faults.heartbeatMs, patientHeartbeatMs);
  const patient = { ...config, faults: { ...config.faults, heartbeatMs } };
  return await Cluster.start({ checkpoint, config: patient, log, signal, onLoading });
}

/** Both at once, for commands that have nothing to check in between. */
export async function openSession(flags: SessionFlags, context: CommandContext): Promise<Session> {
  const model = await openModel(flags, context);
  try {
    const cluster = await startCluster(model, context);
    return {
      ...model,
      cluster,
      async [Symbol.asyncDispose]() {
        await cluster[Symbol.asyncDispose]();
        await model[Symbol.asyncDispose]();
      },
    };
  } catch (error) {
    await model[Symbol.asyncDispose]();
    throw error;
  }
}
