/**
 * `tpla doctor`: what this machine has and whether ranks work on it: versions, compute libraries, and sums over two
 * ranks, every element checked. The ranks need a model; without one they are left out, and that is said.
 */
import type { Argv } from 'yargs';
import type { CommandContext } from '../command-context.ts';
import { findModel } from '../fetch.ts';
import { clusterFlags, jsonFlag, number, type FlagsOf } from '../flags.ts';
import { describeMachine, ggmlPackage } from '../machine.ts';
import { openSession } from '../session.ts';
import { formatBytes } from '../table.ts';

const doctorFlags = <T>(command: Argv<T>) =>
  jsonFlag(clusterFlags(command))
    .option('floats', number('floats', 1, 16_777_216, true, 576, 'elements of the checked all-reduce'))
    .option('count', number('count', 1, 100_000, true, 200, 'how many all-reduces are checked and timed'));

type DoctorFlags = FlagsOf<ReturnType<typeof doctorFlags>>;

export function addDoctorCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'doctor',
    'show what this machine has, start ranks and check their sums',
    (command) => doctorFlags(command),
    (flags) => doctor(flags, context),
  );
}

async function doctor(flags: DoctorFlags, context: CommandContext): Promise<void> {
  const machine = describeMachine();
  const missing = `not checked: ${flags.model ?? 'the default model'} is not here; run \`tpla fetch\` or give --model`;
  const ranks = (await hasModel(flags, context)) ? await checkRanks(flags, context) : undefined;
  if (flags.json) {
    context.write(
      `${JSON.stringify({ machine, ranks: ranks ?? null, ...(ranks === undefined ? { missing } : {}) })}\n`,
    );
    return;
  }
  const lines = [
    `tpla ${machine.tpla}, node ${machine.node}, ${machine.platform}`,
    `${machine.cpu}, ${machine.cores} cores, ${formatBytes(machine.memoryBytes)} memory, ${formatBytes(machine.freeMemoryBytes)} free`,
    `ZeroMQ binding: ${machine.zeromq ?? 'missing; run npm ci'}`,
    `ggml libraries (${ggmlPackage()}): ${machine.ggml ?? 'missing; use --backend gpujs'}`,
    `gpu.js: ${machine.gpujs ?? 'missing; run npm ci'}`,
    ranks === undefined ? `all-reduce ${missing}` : describeRanks(ranks),
  ];
  context.write(`${lines.join('\n')}\n`);
}

interface RankCheck {
  readonly ranks: number;
  readonly devices: readonly string[];
  readonly transport: string;
  readonly floats: number;
  readonly count: number;
  readonly p50Us: number;
  readonly p99Us: number;
}

async function checkRanks(flags: DoctorFlags, context: CommandContext): Promise<RankCheck> {
  await using session = await openSession(flags, context);
  const { cluster } = session;
  const replies = await cluster.collectiveCheck(flags.floats, flags.count);
  // The slowest rank decides when the others go on.
  const sorted = replies.flatMap((reply) => reply.latenciesUs).sort((a, b) => a - b);
  const at = (share: number): number => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
  return {
    ranks: cluster.plan.worldSize,
    devices: cluster.ranks.map((rank) => rank.device),
    transport: cluster.ranks[0]?.transport ?? 'none',
    floats: flags.floats,
    count: flags.count,
    p50Us: at(0.5),
    p99Us: at(0.99),
  };
}

function describeRanks(check: RankCheck): string {
  return (
    `${check.ranks} ranks on ${check.devices.join(', ')}; ${check.count} all-reduces of ${check.floats} floats over ` +
    `${check.transport}: every element right, p50 ${check.p50Us.toFixed(1)} us, p99 ${check.p99Us.toFixed(1)} us`
  );
}

/** A model named by a flag or file must be there; the default one is used only when it has been fetched. */
async function hasModel(flags: DoctorFlags, context: CommandContext): Promise<boolean> {
  if (flags.config !== undefined || (flags.model !== undefined && flags.model !== 'default')) return true;
  return (await findModel('default', context)) !== undefined;
}
