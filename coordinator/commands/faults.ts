/**
 * `tpla faults`: breaks the ranks of a local cluster on purpose while it generates, and prints how fast faults were
 * noticed and repaired, and whether a token was lost or wrong. Exit code 3 when one was. Read next: ../faults/drill.ts.
 */
import type { Argv } from 'yargs';
import { ConfigError, PeerError } from '../../config/errors.ts';
import type { CommandContext } from '../command-context.ts';
import { runDrill, type DrillResult } from '../faults/drill.ts';
import { drillNames, type DrillName, type Fault } from '../faults/injector.ts';
import { clusterFlags, jsonFlag, number, type FlagsOf } from '../flags.ts';
import { openModel } from '../session.ts';
import { formatMs, formatTable } from '../table.ts';

const faultsFlags = <T>(command: Argv<T>) =>
  jsonFlag(clusterFlags(command))
    .option('drill', {
      type: 'string',
      describe:
        'one or several of kill (SIGKILL), freeze (SIGSTOP), slow (half a second late), garble (a flipped bit), cut (lost frames between two ranks), memory (a heap that fills until the process ends; local ranks alone), with commas (default: all)',
    })
    .option('count', number('count', 1, 100_000, true, 20, 'faults in all; the drills take turns'))
    .option('seconds', number('seconds', 1, 86_400, false, 120, 'no new fault after this long'))
    .option('concurrency', number('concurrency', 1, 64, true, 4, 'generations at once'))
    .option('max-tokens', number('max-tokens', 1, 100_000, true, 48, 'tokens of each answer'))
    .option('seed', number('seed', 0, 0xffffffff, true, 1, 'of the steps and ranks that are chosen'));

type FaultsFlags = FlagsOf<ReturnType<typeof faultsFlags>>;

export function addFaultsCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'faults',
    'break ranks on purpose while they generate; show detection, recovery, lost and wrong tokens',
    (command) => faultsFlags(command),
    (flags) => faults(flags, context),
  );
}

async function faults(flags: FaultsFlags, context: CommandContext): Promise<void> {
  await using model = await openModel(flags, context);
  const ranks = model.config.ranks.length;
  const hasLocal = model.config.ranks.some(({ host }) => host === 'local');
  const drills = drillsOf(flags.drill).filter(
    (name) => (ranks > 1 || !needPeers.includes(name)) && (hasLocal || name !== 'memory'),
  );
  if (drills.length === 0)
    throw new ConfigError(`--drill: ${flags.drill} needs at least 2 ranks, and memory a local one`);
  const result = await runDrill({
    ...model,
    drills,
    count: flags.count,
    seconds: flags.seconds,
    prompts: Array.from({ length: flags.concurrency }, (_, i) => `${beginnings[i % beginnings.length]}`),
    maxTokens: flags.maxTokens,
    seed: flags.seed,
    log: context.log,
    signal: context.signal,
  });
  const summary = drills.flatMap((drill) =>
    [false, true].flatMap((isRemote) => summarise(drill, isRemote, result.faults)),
  );
  if (flags.json) context.write(`${JSON.stringify({ ...result, summary })}\n`);
  else context.write(`${describe(summary, result)}\n`);
  if (result.lostTokens + result.wrongTokens > 0)
    throw new PeerError(
      `faults: ${result.lostTokens} tokens lost, ${result.wrongTokens} wrong` +
        (result.firstError === null ? '' : `; first error: ${result.firstError}`),
    );
}

function drillsOf(text: string | undefined): readonly DrillName[] {
  if (text === undefined) return drillNames;
  return text.split(',').map((name) => {
    const known = drillNames.find((drill) => drill === name.trim());
    if (known !== undefined) return known;
    throw new ConfigError(`--drill: expected some of ${drillNames.join(',')}, got ${JSON.stringify(name)}`);
  });
}

/** A cluster of one rank sends no frames. */
const needPeers: readonly DrillName[] = ['garble', 'cut'];

const beginnings = [
  'Once upon a time there was a',
  'The capital of France is',
  'In the morning the old fisherman looked at the sea and',
  'Water boils when',
];

interface Summary {
  readonly drill: DrillName;
  readonly isRemote: boolean;
  readonly faults: number;
  readonly detectedMs: Quantiles | null;
  readonly recoveredMs: Quantiles | null;
}

interface Quantiles {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** A line for local ranks and one for remote ones, where there was such a fault. */
function summarise(drill: DrillName, isRemote: boolean, all: readonly Fault[]): Summary[] {
  const faults = all.filter((fault) => fault.drill === drill && fault.isRemote === isRemote);
  if (faults.length === 0) return [];
  const detectedMs = quantiles(faults.map((fault) => fault.detectedMs));
  const recoveredMs = quantiles(faults.map((fault) => fault.recoveredMs));
  return [{ drill, isRemote, faults: faults.length, detectedMs, recoveredMs }];
}

function quantiles(values: readonly (number | undefined)[]): Quantiles | null {
  const sorted = values.filter((value) => value !== undefined).sort((a, b) => a - b);
  const at = (share: number): number => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? NaN;
  return sorted.length === 0 ? null : { p50: at(0.5), p99: at(0.99), max: at(1) };
}

function describe(summary: readonly Summary[], result: DrillResult): string {
  const cells = (times: Quantiles | null): string[] =>
    times === null ? ['-', '-', '-'] : [times.p50, times.p99, times.max].map(formatMs);
  const table = formatTable(
    ['drill', 'faults', 'detected p50', 'p99', 'max', 'recovered p50', 'p99', 'max'],
    summary.map(({ drill, isRemote, faults, detectedMs, recoveredMs }) => [
      isRemote ? `${drill}, remote rank` : drill,
      String(faults),
      ...cells(detectedMs),
      ...cells(recoveredMs),
    ]),
  );
  const { answers, tokens, lostTokens, wrongTokens } = result;
  return `${table}\n${answers} answers, ${tokens} tokens compared with an undisturbed run: ${lostTokens} lost, ${wrongTokens} wrong`;
}
