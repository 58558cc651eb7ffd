/**
 * A rank's process: says hello to the coordinator, is told its shard, loads it, answers until it is told to stop. It ends
 * when its channel to the coordinator closes, whatever it is doing, so no rank outlives its coordinator.
 * Started as `node dist/worker/main.js --connect ENDPOINT --rank I --token TOKEN`; by `tpla worker` with --offer and its
 * own copy of the model instead, when the coordinator gives it a rank. Read next: arguments.ts, rank-service.ts.
 */
import { ConfigError, PeerError, messageOf } from '../config/errors.ts';
import { hostName } from '../config/host-name.ts';
import { packageVersion } from '../config/version.ts';
import { protocolVersion, type Failed, type FromRank, type ToRank } from '../collective/messages.ts';
import type { ToWorker } from '../collective/greetings.ts';
import { curveClient, RingCurve } from '../collective/curve.ts';
import { removeRunFolder, ringEndpointBeside } from '../collective/endpoint.ts';
import { bindRing, type RingBinding } from '../collective/zeromq-group.ts';
import { ControlClient } from '../collective/control-client.ts';
import { copyIdentity } from '../model/copy-identity.ts';
import { openModelPath } from '../model/dummy.ts';
import { keysOf, settingsOf, type Settings } from './arguments.ts';
import { RankService } from './rank-service.ts';

/** The coordinator answers hello when all ranks have said it. */
const setupTimeoutMs = 120_000;

await main();

async function main(): Promise<void> {
  const settings = settingsOf(process.argv.slice(2), process.env);
  exitWithParent(settings.connect);
  const position: Position = { rank: settings.rank, epoch: 0, request: null };
  let control: ControlClient | undefined;
  try {
    const keys = await keysOf(settings);
    await using ringCurve = keys === undefined ? undefined : await RingCurve.open();
    control = await ControlClient.connect(
      settings.connect,
      settings.rank,
      settings.isOffer ? Infinity : undefined,
      keys && curveClient(keys),
    );
    await using ring = await bindRing(await ringEndpointBeside(settings.connect, settings.rank ?? 0), ringCurve);
    await serve(control, ring, settings, position);
  } catch (error) {
    await reportFailure(control, position, error);
  } finally {
    await control?.[Symbol.asyncDispose]();
  }
}

/** Where this rank is, for the report of a failure. */
interface Position {
  /** null: none yet. */
  rank: number | null;
  epoch: number;
  request: number | null;
}

async function serve(control: ControlClient, ring: RingBinding, settings: Settings, position: Position): Promise<void> {
  await control.send(await greetingOf(settings, ring));
  // Who offers itself waits as long as the coordinator waits for others; the coordinator's end ends that.
  const setup = await firstOrder(control, settings.isOffer ? undefined : setupTimeoutMs);
  if (setup.kind === 'stop') return;
  if (setup.kind === 'refused')
    throw new ConfigError(`refused by the coordinator at ${settings.connect}: ${setup.reason}`);
  if (setup.kind !== 'setup') throw new PeerError(`expected setup from the coordinator, got ${setup.kind}`);
  const { rank, worldSize } = setup;
  position.rank = rank;
  control.becomes(rank);
  if (settings.isOffer) process.send?.({ kind: 'placed', rank, worldSize } satisfies ToWorker);
  await using service = new RankService(control, ring, { ...setup, modelPath: settings.model ?? setup.modelPath });
  try {
    await service.run();
  } catch (error) {
    position.epoch = service.epoch;
    position.request = service.failedRequest;
    throw error;
  }
}

/** Probes come whenever some other connection has ended; they need no answer. */
async function firstOrder(control: ControlClient, timeoutMs: number | undefined): Promise<ToRank> {
  for (;;) {
    const { message } = await control.receive(timeoutMs);
    if (message.kind !== 'probe') return message;
  }
}

async function greetingOf(settings: Settings, ring: RingBinding): Promise<FromRank> {
  const { rank, token, isOffer, worldSize, model } = settings;
  const greeting = {
    pid: process.pid,
    host: hostName(),
    protocol: protocolVersion,
    version: packageVersion,
    token,
    ringEndpoint: ring.endpoint,
    ringKey: ring.key,
  };
  if (!isOffer) return { kind: 'hello', rank: rank ?? 0, ...greeting };
  await using checkpoint = await openModelPath(model ?? '');
  return { kind: 'offer', rank, worldSize, modelIdentity: await copyIdentity(checkpoint), ...greeting };
}

/** Tells the coordinator why, then ends with the error's exit code; the text also goes to stderr for the log. */
async function reportFailure(control: ControlClient | undefined, position: Position, error: unknown): Promise<void> {
  const { rank, epoch, request: id } = position;
  const kind = kindOf(error);
  console.error(kind === 'InvariantError' && error instanceof Error ? error.stack : messageOf(error));
  process.exitCode = kind === 'ConfigError' ? 2 : kind === 'PeerError' ? 3 : 70;
  // A process that was given no rank is nobody's.
  if (control?.isConnected !== true || rank === null) return;
  const failed: Failed = { kind: 'failed', rank, epoch, id, error: kind, message: messageOf(error) };
  try {
    await control.send(failed);
  } catch (sendError) {
    console.error(`rank ${rank}: could not tell the coordinator: ${messageOf(sendError)}`);
  }
}

function kindOf(error: unknown): Failed['error'] {
  if (error instanceof ConfigError) return 'ConfigError';
  if (error instanceof PeerError) return 'PeerError';
  return 'InvariantError';
}

/**
 * The IPC channel that fork opened closes when the coordinator dies, however it dies. Every rank then removes the run's
 * socket files, which their owners may not have been able to. While it is open the channel does not keep a rank alive.
 */
function exitWithParent(endpoint: string): void {
  process.on('disconnect', () => {
    removeRunFolder(endpoint);
    process.exit(3);
  });
  process.channel?.unref();
  // Ctrl-C reaches the whole process group; the coordinator decides when ranks stop.
  process.on('SIGINT', () => undefined);
}
