/**
 * A rank's process: says hello to the coordinator, is told its shard, loads it, answers until it is told to stop. It ends
 * when its channel to the coordinator closes, whatever it is doing, so no rank outlives its coordinator.
 * Started as `node dist/worker/main.js --connect ENDPOINT --rank I --token TOKEN`. Read next: rank-service.ts.
 */
import { hostname } from 'node:os';
import { parseArgs } from 'node:util';
import { ConfigError, InvariantError, PeerError, messageOf } from '../config/errors.ts';
import { packageVersion } from '../config/version.ts';
import { protocolVersion, type Failed } from '../collective/messages.ts';
import { removeRunFolder, ringEndpointBeside } from '../collective/endpoint.ts';
import { bindRing, type RingBinding } from '../collective/zeromq-group.ts';
import { ControlClient } from '../collective/control.ts';
import { RankService } from './rank-service.ts';

/** The coordinator answers hello when all ranks have said it. */
const setupTimeoutMs = 120_000;

await main();

async function main(): Promise<void> {
  const { connect, rank, token } = argumentsOf();
  exitWithParent(connect);
  await using control = await ControlClient.connect(connect, rank);
  const position: Position = { rank, epoch: 0, request: null };
  try {
    await using ring = await bindRing(ringEndpointBeside(connect, rank));
    await serve(control, ring, token, position);
  } catch (error) {
    await reportFailure(control, position, error);
  }
}

/** Where this rank is, for the report of a failure. */
interface Position {
  readonly rank: number;
  epoch: number;
  request: number | null;
}

async function serve(control: ControlClient, ring: RingBinding, token: string, position: Position): Promise<void> {
  const { rank } = position;
  await control.send({
    kind: 'hello',
    rank,
    pid: process.pid,
    host: hostname(),
    protocol: protocolVersion,
    version: packageVersion,
    token,
    ringEndpoint: ring.endpoint,
  });
  const { message: setup } = await control.receive(setupTimeoutMs);
  if (setup.kind === 'stop') return;
  if (setup.kind !== 'setup')
    throw new PeerError(`rank ${rank}: expected setup from the coordinator, got ${setup.kind}`);
  await using service = new RankService(control, ring, setup);
  try {
    await service.run();
  } catch (error) {
    position.epoch = service.epoch;
    position.request = service.failedRequest;
    throw error;
  }
}

/** Tells the coordinator why, then ends with the error's exit code; the text also goes to stderr for the log. */
async function reportFailure(control: ControlClient, position: Position, error: unknown): Promise<void> {
  const { rank, epoch, request: id } = position;
  const kind = kindOf(error);
  const failed: Failed = { kind: 'failed', rank, epoch, id, error: kind, message: messageOf(error) };
  console.error(kind === 'InvariantError' && error instanceof Error ? error.stack : failed.message);
  try {
    await control.send(failed);
  } catch (sendError) {
    console.error(`rank ${rank}: could not tell the coordinator: ${messageOf(sendError)}`);
  }
  process.exitCode = kind === 'ConfigError' ? 2 : kind === 'PeerError' ? 3 : 70;
}

function kindOf(error: unknown): Failed['error'] {
  if (error instanceof ConfigError) return 'ConfigError';
  if (error instanceof PeerError) return 'PeerError';
  return 'InvariantError';
}

function argumentsOf(): { connect: string; rank: number; token: string } {
  const { values } = parseArgs({
    options: { connect: { type: 'string' }, rank: { type: 'string' }, token: { type: 'string' } },
  });
  const rank = Number(values.rank);
  if (values.connect === undefined || values.token === undefined || !Number.isInteger(rank) || rank < 0)
    throw new InvariantError('worker: expected --connect ENDPOINT --rank I --token TOKEN');
  return { connect: values.connect, rank, token: values.token };
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
