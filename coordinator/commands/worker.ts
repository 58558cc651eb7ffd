/**
 * `tpla worker`: offers this machine as a rank to a coordinator elsewhere, with its own copy of the model, and again when
 * that coordinator leaves, until stopped. Started by hand, by ssh (--attached) or by a launcher (--from-env).
 * Read next: ../remote/offer.ts.
 */
import type { Argv } from 'yargs';
import { isLoopbackEndpoint } from '../../config/cluster.ts';
import { ConfigError } from '../../config/errors.ts';
import { maxWorldSize } from '../../config/shard-plan.ts';
import { findMachineKeys } from '../../collective/key-files.ts';
import type { CommandContext } from '../command-context.ts';
import { resolveModel } from '../fetch.ts';
import { jsonFlag, optionalNumber, type FlagsOf } from '../flags.ts';
import { readAttachment, type Attachment } from '../remote/attachment.ts';
import { launchedAs, type LaunchedAs } from '../remote/launcher-env.ts';
import { offerUntilStopped } from '../remote/offer.ts';

const defaultKeys = './keys';

const workerFlags = <T>(command: Argv<T>) =>
  jsonFlag(command)
    .option('join', { type: 'string', describe: 'control endpoint of the coordinator, tcp://HOST:PORT' })
    .option('from-env', {
      type: 'boolean',
      default: false,
      describe:
        'take rank, number of ranks and address from mpirun, srun, a Kubernetes Indexed Job, or RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT',
    })
    .option('rank', {
      ...optionalNumber('rank', 0, maxWorldSize - 1, true, 'the rank to ask for'),
      defaultDescription: 'any that is free',
    })
    .option('model', {
      type: 'string',
      default: 'default',
      describe: "this machine's copy of the model: Hugging Face folder, GGUF file, or `default` (fetched once)",
    })
    .option('keys', {
      type: 'string',
      describe: `key file of \`tpla keys --for\`, or a folder with it as machine.key (default: ${defaultKeys} if there)`,
    })
    .option('allow-no-keys', {
      type: 'boolean',
      default: false,
      describe: 'talk to another machine without keys: whoever is on the way may read and change everything',
    })
    .option('attached', {
      type: 'boolean',
      default: false,
      describe:
        'end with standard input, whose first line holds the secrets: how `tpla serve` starts ranks through ssh',
    });

type WorkerFlags = FlagsOf<ReturnType<typeof workerFlags>>;

export function addWorkerCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'worker',
    'offer this machine as a rank to a coordinator, again and again until stopped',
    (command) => workerFlags(command),
    (flags) => worker(flags, context),
  );
}

async function worker(flags: WorkerFlags, context: CommandContext): Promise<void> {
  const launched = flags.fromEnv ? launchedAs(context.env) : undefined;
  const join = joinOf(flags, launched);
  const stop = new AbortController();
  const signal = AbortSignal.any([context.signal, stop.signal]);
  const attachment = flags.attached ? await attach(stop) : undefined;
  const modelPath = await resolveModel(flags.model, context);
  const keys = attachment === undefined ? await keysOf(flags, join) : undefined;
  if (flags.json) context.write(`${JSON.stringify({ waiting: true, join, pid: process.pid })}\n`);
  await offerUntilStopped({
    join,
    rank: launched?.rank ?? flags.rank,
    worldSize: launched?.worldSize ?? null,
    modelPath,
    keys,
    keyText: attachment?.keys == null ? undefined : JSON.stringify(attachment.keys),
    token: attachment?.token ?? '',
    isOnce: flags.attached,
    log: context.log,
    signal,
  });
}

function joinOf(flags: WorkerFlags, launched: LaunchedAs | undefined): string {
  const join = flags.join ?? launched?.coordinator ?? undefined;
  if (join === undefined)
    throw new ConfigError(
      launched === undefined
        ? '--join: missing; expected tcp://HOST:PORT of the coordinator, or --from-env'
        : `--from-env: ${launched.launcher} does not say where the coordinator is; set MASTER_ADDR or say --join`,
    );
  const match = /^tcp:\/\/[\w.-]+:(\d{1,5})$/.exec(join);
  if (match === null || Number(match[1]) > 65_535)
    throw new ConfigError(`--join: expected tcp://HOST:PORT, got ${JSON.stringify(join)}`);
  if (flags.rank !== undefined && launched !== undefined)
    throw new ConfigError(`--rank: ${launched.launcher} has given rank ${launched.rank}; leave --rank out`);
  return join;
}

/** @returns the key file; undefined: none is needed @throws ConfigError when there has to be one */
async function keysOf(flags: WorkerFlags, join: string): Promise<string | undefined> {
  const path = flags.keys ?? defaultKeys;
  const found = await findMachineKeys(path);
  if (found !== null) return found.path;
  if (flags.keys !== undefined)
    throw new ConfigError(
      `--keys: no key file at ${path}; make one on the coordinator's machine with \`tpla keys --for NAME\`, and copy it`,
    );
  if (isLoopbackEndpoint(join) || flags.allowNoKeys) return undefined;
  throw new ConfigError(
    `--keys: ${join} is another machine and there is no key file at ${path}; make one on the ` +
      "coordinator's machine with `tpla keys --for NAME` and copy it, or say --allow-no-keys",
  );
}

/** Ends the worker with the connection that started it. */
async function attach(stop: AbortController): Promise<Attachment> {
  const attachment = await readAttachment(process.stdin);
  const end = (): void => stop.abort(new Error('standard input has ended'));
  process.stdin.once('end', end).once('close', end);
  return attachment;
}
