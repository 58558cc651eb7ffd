/**
 * `tpla doctor`: what this machine has and whether ranks work on it: versions, compute libraries, sums over the ranks of
 * the asked cluster with every element checked, their speed, and a verdict with what to change. The ranks need a model;
 * without one they are left out, and that is said. Read next: ../doctor/verdict.ts.
 */
import type { Argv } from 'yargs';
import { hasCurve } from '../../collective/zmq.ts';
import type { CommandContext } from '../command-context.ts';
import { checkRanks, type RankCheck } from '../doctor/check-ranks.ts';
import { judge } from '../doctor/verdict.ts';
import { findModel } from '../fetch.ts';
import { clusterFlags, jsonFlag, number, type FlagsOf } from '../flags.ts';
import { describeMachine, ggmlPackage } from '../machine.ts';
import { formatBytes, formatTable } from '../table.ts';

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
  const missing = `no ranks were started: ${flags.model ?? 'the default model'} is not here; run \`tpla fetch\` or give --model`;
  const check = (await hasModel(flags, context)) ? await checkRanks(flags, context, flags) : undefined;
  const verdict = judge(machine, check, missing);
  if (flags.json) return context.write(`${JSON.stringify({ machine, ranks: check ?? null, verdict })}\n`);
  const lines = [
    `tpla ${machine.tpla}, node ${machine.node}, ${machine.platform}`,
    `${machine.cpu}, ${machine.cores} cores, ${formatBytes(machine.memoryBytes)} memory, ${formatBytes(machine.freeMemoryBytes)} free`,
    `ZeroMQ binding: ${machine.zeromq ?? 'missing'}, encryption (CURVE): ${hasCurve ? 'yes' : 'no'}`,
    `ggml libraries (${ggmlPackage()}): ${machine.ggml ?? 'missing'}`,
    `gpu.js: ${machine.gpujs ?? 'missing'}`,
    ...(check === undefined ? [] : ['', describeRanks(check)]),
    '',
    `verdict: ${verdict.ready ? 'ready' : 'not ready'}`,
    ...verdict.advice.map((line) => `- ${line}`),
  ];
  context.write(`${lines.join('\n')}\n`);
}

function describeRanks(check: RankCheck): string {
  const table = formatTable(
    ['rank', 'host', 'GB/s', 'GFLOP/s', 'weights', 'full cache', 'device'],
    check.ranks.map((rank) => [
      `${rank.rank}`,
      rank.host,
      rank.gigabytesPerSecond.toFixed(1),
      rank.gigaflopsPerSecond.toFixed(0),
      formatBytes(rank.weightBytes),
      formatBytes(rank.fullCacheBytes),
      rank.device,
    ]),
  );
  const { short, long, transport } = check;
  if (check.ranks.length === 1) return table;
  const rate = (long.floats * 4) / long.p50Us / 1000;
  return `${table}
sums over ${transport}, every element right: ${short.count} of ${short.floats} floats, p50 ${short.p50Us.toFixed(1)} us, p99 ${short.p99Us.toFixed(1)} us; of ${formatBytes(long.floats * 4)} each, ${rate.toFixed(2)} GB/s`;
}

/** A model named by a flag or file must be there; the default one is used only when it has been fetched. */
async function hasModel(flags: DoctorFlags, context: CommandContext): Promise<boolean> {
  if (flags.config !== undefined || (flags.model !== undefined && flags.model !== 'default')) return true;
  return (await findModel('default', context)) !== undefined;
}
