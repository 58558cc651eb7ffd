/**
 * `tpla bench`: schemes x ranks x contexts x batches, one cluster after another, each checked before it is timed. Prints
 * a table or JSON, and writes a page with charts or Markdown where asked. `--dummy` needs no checkpoint.
 */
import { execFileSync } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import type { Argv } from 'yargs';
import { schemeNames } from '../../config/cluster.ts';
import { ConfigError } from '../../config/errors.ts';
import { maxWorldSize } from '../../config/shard-plan.ts';
import { openDummy } from '../../model/dummy.ts';
import { checkLogits, measure, verify } from '../bench/measure.ts';
import { benchPage } from '../bench/page.ts';
import {
  compare,
  markdownReport,
  slowerWithMoreRanks,
  terminalReport,
  type BenchReport,
  type BenchRow,
  type Skipped,
} from '../bench/report.ts';
import type { CommandContext } from '../command-context.ts';
import { computeFlags, jsonFlag, number, optionalNumber, tplaWindowFlag, type FlagsOf } from '../flags.ts';
import { describeMachine } from '../machine.ts';
import { startProgress, type Progress } from '../progress.ts';
import { openModel, startCluster, type OpenModel } from '../session.ts';

const benchFlags = <T>(command: Argv<T>) =>
  jsonFlag(computeFlags(command))
    .option('window', tplaWindowFlag)
    .option('ranks', { type: 'string', default: '1,2', describe: `numbers of ranks, 1 to ${maxWorldSize}, by commas` })
    .option('scheme', {
      type: 'string',
      default: 'auto',
      describe: `schemes by commas: ${schemeNames.join(', ')}; on one rank only the first is measured`,
    })
    .option('context', { type: 'string', default: '32,512', describe: 'tokens of the prompts, by commas' })
    .option('batch', { type: 'string', default: '1', describe: 'sequences decoded together, by commas, 1 to 256' })
    .option('decode', number('decode', 1, 100_000, true, 32, 'timed decode steps of a repetition'))
    .option('repeat', number('repeat', 1, 1000, true, 5, 'repetitions; medians are shown, with the spread'))
    .option('dummy', {
      type: 'string',
      describe: 'config.json of a model to fill with random weights instead of --model',
    })
    .option(
      'layers',
      optionalNumber('layers', 1, 10_000, true, 'with --dummy: make only the first layers (default: all)'),
    )
    .option('skip-prefill', {
      type: 'boolean',
      default: false,
      describe: 'with --dummy: time decode alone, over an empty cache; for contexts too long to compute here',
    })
    .option('html', { type: 'string', describe: 'write a page with table and charts to this file' })
    .option('markdown', { type: 'string', describe: 'write the table as Markdown to this file' });

type BenchFlags = FlagsOf<ReturnType<typeof benchFlags>>;

export function addBenchCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'bench',
    'measure speed over schemes, ranks, contexts and batches',
    (command) => benchFlags(command),
    (flags) => bench(flags, context),
  );
}

async function bench(flags: BenchFlags, context: CommandContext): Promise<void> {
  const report = await runAll(flags, context);
  if (flags.html !== undefined) await write('html', flags.html, benchPage(report));
  if (flags.markdown !== undefined) await write('markdown', flags.markdown, markdownReport(report));
  context.write(flags.json ? `${JSON.stringify(report)}\n` : `${terminalReport(report)}\n`);
}

interface Plan {
  readonly contexts: readonly number[];
  readonly batches: readonly number[];
  readonly clusters: readonly { readonly ranks: number; readonly scheme: string }[];
}

function planOf(flags: BenchFlags): Plan {
  const ranks = wholeNumbers('ranks', flags.ranks, maxWorldSize);
  const schemes = flags.scheme.split(',').map((scheme) => scheme.trim());
  const unknown = schemes.find((scheme) => !schemeNames.some((name) => name === scheme));
  if (unknown !== undefined)
    throw new ConfigError(`--scheme: expected some of ${schemeNames.join(', ')} by commas, got ${unknown}`);
  if (flags.layers !== undefined && flags.dummy === undefined)
    throw new ConfigError('--layers: only with --dummy, a checkpoint has all its layers');
  if (flags.skipPrefill && flags.dummy === undefined)
    throw new ConfigError('--skip-prefill: only with --dummy, a checkpoint would write nonsense');
  if (flags.dummy !== undefined && flags.model !== undefined)
    throw new ConfigError('--dummy and --model: give one of them');
  return {
    contexts: wholeNumbers('context', flags.context, 16_777_216),
    batches: wholeNumbers('batch', flags.batch, 256),
    // One rank computes the same in every scheme.
    clusters: ranks.flatMap((count) =>
      (count === 1 ? schemes.slice(0, 1) : schemes).map((scheme) => ({ ranks: count, scheme })),
    ),
  };
}

async function runAll(flags: BenchFlags, context: CommandContext): Promise<BenchReport> {
  const plan = planOf(flags);
  const rows: BenchRow[] = [];
  const skipped: Skipped[] = [];
  let reference: Float32Array | undefined;
  const perCluster = plan.contexts.length * plan.batches.length * (flags.repeat + 1);
  using progress = startProgress('bench', plan.clusters.length * perCluster, { name: 'runs', size: 1 });
  for (const [i, wanted] of plan.clusters.entries()) {
    const from = i * perCluster;
    try {
      const own = { ...context, log: (line: string) => progress.log(line) };
      const first = await measureCluster(flags, own, plan, wanted, reference, rows, tickFrom(progress, from));
      reference ??= first;
    } catch (error) {
      // Impossible splits are part of the answer, unless nothing is possible.
      if (!(error instanceof ConfigError) || plan.clusters.length === 1) throw error;
      skipped.push({ ...wanted, reason: error.message });
    }
  }
  if (rows.length === 0) throw new ConfigError(skipped.map(({ reason }) => reason).join('\n'));
  const { platform, cpu, cores, memoryBytes, ...versions } = describeMachine();
  return {
    model: basename(flags.dummy ?? flags.model ?? 'default'),
    rows: compare(rows),
    skipped,
    notes: slowerWithMoreRanks(rows),
    machine: { platform, cpu, cores, memoryBytes },
    versions,
    commit: commit(),
    options: optionsOf(flags),
  };
}

/** @returns logits of the checked prompt */
async function measureCluster(
  flags: BenchFlags,
  context: CommandContext,
  { contexts, batches }: Plan,
  { ranks, scheme }: Plan['clusters'][number],
  reference: Float32Array | undefined,
  rows: BenchRow[],
  tick: () => void,
): Promise<Float32Array> {
  await using model = await open(flags, context, {
    ranks,
    scheme,
    contextTokens: Math.max(32, ...contexts.map((tokens) => tokens + flags.decode)),
    slots: Math.max(...batches),
  });
  // Its own bar stands there already.
  await using cluster = await startCluster(model, context, { showsLoading: false });
  const logits = await checkLogits(cluster);
  const divergence = verify(cluster, logits, reference ?? logits);
  for (const tokens of contexts)
    for (const batch of batches) {
      const workload = {
        context: tokens,
        batch,
        skipPrefill: flags.skipPrefill,
        decodeSteps: flags.decode,
        repetitions: flags.repeat,
      };
      rows.push(await measure(cluster, workload, divergence, tick));
    }
  return logits;
}

async function open(
  flags: BenchFlags,
  context: CommandContext,
  wanted: {
    readonly ranks: number;
    readonly scheme: string;
    readonly contextTokens: number;
    readonly slots: number;
  },
): Promise<OpenModel> {
  const { ranks, scheme, contextTokens, slots } = wanted;
  const all = { ...flags, ranks, scheme, context: contextTokens };
  const { dummy, layers } = flags;
  const model =
    dummy === undefined
      ? await openModel(all, context)
      : await openModel({ ...all, model: dummy }, context, (path) => openDummy(path, layers ?? 0));
  return { ...model, config: { ...model.config, cache: { ...model.config.cache, slots } } };
}

/** What else decides the numbers; what was not given is the default. */
function optionsOf(flags: BenchFlags): Record<string, string | number> {
  const { backend, device, threads, transport, cacheType, weights, prefill, reparam, layers } = flags;
  const skipPrefill = flags.skipPrefill ? 'yes' : undefined;
  const given = { backend, device, threads, transport, cacheType, weights, prefill, reparam, layers, skipPrefill };
  const set: Record<string, string | number> = { decode: flags.decode, repeat: flags.repeat };
  for (const [name, value] of Object.entries(given)) if (value !== undefined) set[name] = value;
  return set;
}

function wholeNumbers(name: string, text: string, max: number): number[] {
  const numbers = text.split(',').map((part) => (part.trim() === '' ? NaN : Number(part)));
  if (numbers.every((value) => Number.isInteger(value) && value >= 1 && value <= max)) return numbers;
  throw new ConfigError(`--${name}: expected whole numbers from 1 to ${max} by commas, got ${text}`);
}

function tickFrom(progress: Progress, from: number): () => void {
  let done = from;
  return () => {
    done++;
    progress.update(done);
  };
}

async function write(flag: string, path: string, text: string): Promise<void> {
  try {
    await writeFile(path, text);
  } catch (cause) {
    throw new ConfigError(`--${flag} ${path}: cannot be written; name a file in a folder that exists`, { cause });
  }
}

/** null: not run from a git checkout, or there is no git. */
function commit(): string | null {
  try {
    const folder = import.meta.dirname;
    return execFileSync('git', ['-C', folder, 'rev-parse', '--short', 'HEAD'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  } catch {
    return null;
  }
}
