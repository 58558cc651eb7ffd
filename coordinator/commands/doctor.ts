/**
 * `tpla doctor [cluster.yaml]`: what this machine has and whether ranks work on it: versions, compute libraries, sums over
 * the ranks of the asked cluster with every element checked, their speed, the links between hosts, free memory, and a
 * verdict with what to change. The ranks need a model; without one they are left out, and that is said.
 * Read next: ../doctor/check-ranks.ts, ../doctor/verdict.ts.
 */
import type { Argv } from 'yargs';
import { ConfigError, PeerError } from '../../config/errors.ts';
import type { CommandContext } from '../command-context.ts';
import { checkRanks, type RankCheck } from '../doctor/check-ranks.ts';
import { judge, type Verdict } from '../doctor/verdict.ts';
import { findModel } from '../fetch.ts';
import { clusterFilePositional, clusterFlags, configFileOf, jsonFlag, number, type FlagsOf } from '../flags.ts';
import { describeMachine, ggmlPackage, type Machine } from '../machine.ts';
import { formatBytes, formatTable } from '../table.ts';

const doctorFlags = <T>(command: Argv<T>) =>
  jsonFlag(clusterFlags(command))
    .positional('file', clusterFilePositional)
    .option('floats', number('floats', 1, 16_777_216, true, 576, 'elements of the checked all-reduce'))
    .option('count', number('count', 1, 100_000, true, 200, 'how many all-reduces are checked and timed'));

type DoctorFlags = FlagsOf<ReturnType<typeof doctorFlags>>;

export function addDoctorCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'doctor [file]',
    'show what this machine has, start ranks, check their sums and links, say what to change',
    (command) => doctorFlags(command),
    (flags) => doctor({ ...flags, config: configFileOf(flags) }, context),
  );
}

/** @throws what kept the ranks from starting, after what is known has been printed */
async function doctor(flags: DoctorFlags, context: CommandContext): Promise<void> {
  const machine = describeMachine();
  const { check, reason, error } = await tryRanks(flags, context);
  const verdict = judge(machine, check, reason);
  if (flags.json) context.write(`${JSON.stringify({ machine, ranks: check ?? null, verdict })}\n`);
  else context.write(`${describe(machine, check, verdict)}\n`);
  if (error !== undefined) throw error;
}

interface Attempt {
  readonly check?: RankCheck;
  /** Why there is no check. */
  readonly reason: string;
  readonly error?: Error;
}

/** Ranks that do not start are what a doctor is asked about: the rest is said all the same. */
async function tryRanks(flags: DoctorFlags, context: CommandContext): Promise<Attempt> {
  if (!(await hasModel(flags, context)))
    return { reason: 'no ranks were started: the default model is not here; run `tpla fetch` or give --model' };
  try {
    return { check: await checkRanks(flags, context, flags), reason: '' };
  } catch (error) {
    if (!(error instanceof ConfigError) && !(error instanceof PeerError)) throw error;
    return { reason: `the ranks could not be checked: ${error.message}`, error };
  }
}

function describe(machine: Machine, check: RankCheck | undefined, verdict: Verdict): string {
  return [
    `tpla ${machine.tpla}, node ${machine.node}, ${machine.platform}`,
    `${machine.cpu}, ${machine.cores} cores, ${formatBytes(machine.memoryBytes)} memory, ${formatBytes(machine.freeMemoryBytes)} free`,
    `ZeroMQ binding: ${machine.zeromq ?? 'missing'}, encryption (CURVE): ${machine.curve ? 'yes' : 'no'}`,
    `ggml libraries (${ggmlPackage()}): ${machine.ggml ?? 'missing'}`,
    `gpu.js: ${machine.gpujs ?? 'missing'}`,
    `MPI: ${machine.mpi ?? 'none (only --transport mpi needs it)'}`,
    ...(check === undefined ? [] : ['', describeRanks(check)]),
    ...(check === undefined || check.links.length === 0 ? [] : ['', describeLinks(check)]),
    '',
    `verdict: ${verdict.ready ? 'ready' : 'not ready'}`,
    ...verdict.advice.map((line) => `- ${line}`),
  ].join('\n');
}

function describeRanks(check: RankCheck): string {
  const table = formatTable(
    ['rank', 'host', 'GB/s', 'GFLOP/s', 'weights', 'full cache', 'free memory', 'device'],
    check.ranks.map((rank) => [
      `${rank.rank}`,
      rank.host,
      rank.gigabytesPerSecond.toFixed(1),
      rank.gigaflopsPerSecond.toFixed(0),
      formatBytes(rank.weightBytes),
      formatBytes(rank.fullCacheBytes),
      formatBytes(rank.freeMemoryBytes),
      rank.device,
    ]),
  );
  const { short, long, transport } = check;
  if (check.ranks.length === 1) return table;
  const rate = (long.floats * 4) / long.p50Us / 1000;
  return `${table}
sums over ${transport}, every element right: ${short.count} of ${short.floats} floats, p50 ${short.p50Us.toFixed(1)} us, p99 ${short.p99Us.toFixed(1)} us; of ${formatBytes(long.floats * 4)} each, ${rate.toFixed(2)} GB/s`;
}

function describeLinks({ links, ranks }: RankCheck): string {
  const named = (rank: number): string => `rank ${rank} (${ranks[rank]?.host ?? 'unknown'})`;
  return formatTable(
    ['link', 'one way', 'MB/s'],
    links.map(({ from, to, latencyUs, megabytesPerSecond }) => [
      `${from === null ? 'coordinator' : named(from)} - ${named(to)}`,
      `${latencyUs.toFixed(0)} us`,
      megabytesPerSecond.toFixed(0),
    ]),
  );
}

/** A model named by a flag or file must be there; the default one is used only when it has been fetched. */
async function hasModel(flags: DoctorFlags, context: CommandContext): Promise<boolean> {
  if (flags.config !== undefined || (flags.model !== undefined && flags.model !== 'default')) return true;
  return (await findModel('default', context)) !== undefined;
}
