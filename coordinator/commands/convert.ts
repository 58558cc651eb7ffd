/** `tpla convert SRC --out DIR`: a GQA checkpoint becomes an MLA one without training, with a report of what it cost. */
import type { Argv } from 'yargs';
import { backendNames, transportNames } from '../../config/cluster.ts';
import { ConfigError } from '../../config/errors.ts';
import { loadClusterConfig } from '../../config/load.ts';
import { floatTypes } from '../../model/transmla/encode-floats.ts';
import type { CommandContext } from '../command-context.ts';
import { defaultCacheRatio } from '../convert/choose-settings.ts';
import { conversionMethods, type ConversionOptions, type ConversionReport } from '../convert/conversion-options.ts';
import { convertCheckpoint } from '../convert/convert-checkpoint.ts';
import { type RecipeStep, recipeStepNames, recipeSteps } from '../../model/transmla/recipe-steps.ts';
import { explain } from '../convert/explain.ts';
import { resolveModel } from '../fetch.ts';
import { jsonFlag, number, optionalNumber, type FlagsOf } from '../flags.ts';
import { formatTable } from '../table.ts';
import { openText } from '../text.ts';

const convertFlags = <T>(command: Argv<T>) =>
  sizeFlags(jsonFlag(command))
    .positional('source', {
      type: 'string',
      demandOption: true,
      describe: 'model to convert: Hugging Face folder, GGUF file, or `default` (fetched once)',
    })
    .option('out', { type: 'string', demandOption: true, describe: 'folder to make; must be empty or absent' })
    .option('force', { type: 'boolean', default: false, describe: 'replace a converted checkpoint that is there' })
    .option('method', {
      choices: conversionMethods,
      default: 'recipe' as const,
      describe: 'recipe: errors weighed by what they do, least loss; published: TransMLA as in its paper and code',
    })
    .option('without', {
      type: 'string',
      default: '',
      describe: `recipe: steps to leave out, separated by commas, to see what each is worth. ${recipeStepNames.map((step) => `${step}: ${recipeSteps[step]}`).join('; ')}`,
      defaultDescription: 'none',
    })
    .option('explain', { type: 'boolean', default: false, describe: 'recipe: print where each layer loses' })
    .option('calibration', {
      type: 'string',
      default: 'self',
      describe: 'UTF-8 text to fit on, ideally like the later use; self: text that the model writes itself',
    })
    .option('calibration-tokens', {
      ...optionalNumber(
        'calibration-tokens',
        64,
        10_000_000,
        true,
        'tokens to fit on; a few more are held out to judge by',
      ),
      // An exact conversion fits nothing: its text only serves to measure.
      defaultDescription: '8192; with --exact 512',
    })
    .option('seed', number('seed', 0, 0xffffffff, true, 0, 'of the text that the model writes; same seed, same bytes'))
    .option('dtype', {
      choices: floatTypes,
      describe: 'type of all written matrices',
      defaultDescription: 'f16 for those converted, with --exact f32; the others stay bit for bit as they are',
    })
    .option('ranks', { type: 'number', describe: 'worker processes that calibrate and measure (default: 2)' })
    .option('backend', { choices: backendNames, describe: 'what computes (default: ggml)' })
    .option('transport', { choices: transportNames, describe: 'what carries the sums between ranks (default: auto)' })
    .option('threads', { type: 'number', describe: 'threads of each rank, 1 to 256 (default: 1)' });

function sizeFlags<T>(command: Argv<T>) {
  return command
    .option('exact', {
      type: 'boolean',
      default: false,
      describe: 'keep every number of the cache and every rotary pair: logits equal those of the source',
    })
    .option('cache-ratio', {
      ...optionalNumber('cache-ratio', 0, 1, false, 'cache of the result over that of the source; sizes are searched'),
      defaultDescription: `${defaultCacheRatio}, unless both --rope-dim and --kv-rank are given`,
    })
    .option('rope-dim', {
      ...optionalNumber('rope-dim', 2, 1_048_576, true, 'numbers of the shared rotary key, even'),
      defaultDescription: 'searched',
    })
    .option('kv-rank', {
      ...optionalNumber('kv-rank', 1, 1_048_576, true, 'numbers of the latent'),
      defaultDescription: 'what the cache ratio leaves',
    })
    .option('freqfold', {
      type: 'string',
      default: 'auto',
      describe: 'published: neighbouring rotary frequencies treated as equal; 1: none; auto: searched',
      coerce: (given: string) => autoOrNumber('freqfold', given),
    })
    .option('balance', {
      type: 'string',
      default: 'auto',
      describe: 'published: weight of values against nope keys in the PCA; auto: 1 = equal mean norms',
      coerce: (given: string) => autoOrNumber('balance', given),
    });
}

type ConvertFlags = FlagsOf<ReturnType<typeof convertFlags>>;

export function addConvertCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'convert <source>',
    'turn a GQA model into an MLA model with a smaller cache, without training',
    (command) => convertFlags(command),
    (flags) => convert(flags, context),
  );
}

async function convert(flags: ConvertFlags, context: CommandContext): Promise<void> {
  const report = await convertCheckpoint(await optionsOf(flags, context));
  if (flags.json) context.write(`${JSON.stringify({ out: flags.out, report })}\n`);
  else context.write(`${tableOf(report)}\n`);
  if (flags.explain) context.log(explain(report.layers));
}

async function optionsOf(flags: ConvertFlags, context: CommandContext): Promise<ConversionOptions> {
  const { backend, transport, threads, ranks, exact } = flags;
  const cluster = await loadClusterConfig({ flags: { model: flags.source, backend, transport, threads, ranks } });
  const model = await resolveModel(cluster.model, context);
  return {
    model,
    method: flags.method,
    without: stepsOf(flags.without),
    out: flags.out,
    force: flags.force,
    sizes: {
      exact,
      ropeDim: flags.ropeDim ?? null,
      kvRank: flags.kvRank ?? null,
      cacheRatio: flags.cacheRatio ?? null,
      freqfold: flags.freqfold,
      balance: flags.balance,
    },
    calibration: flags.calibration,
    calibrationTokens: flags.calibrationTokens ?? (exact ? 512 : 8192),
    seed: flags.seed,
    dtype: flags.dtype ?? (exact ? 'f32' : 'f16'),
    untouched: flags.dtype ?? 'keep',
    text: await textOf(model, context),
    cluster,
    log: context.log,
    signal: context.signal,
  };
}

/** A model without a tokenizer can still be converted; that it is missing is said. */
async function textOf(model: string, context: CommandContext): Promise<ConversionOptions['text']> {
  try {
    return await openText(model);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    context.log(`${error.message}; the converted model will have none either`);
    return null;
  }
}

function stepsOf(given: string): ReadonlySet<RecipeStep> {
  const names = given === '' ? [] : given.split(',');
  return new Set(
    names.map((name) => {
      const step = recipeStepNames.find((known) => known === name);
      if (step !== undefined) return step;
      throw new ConfigError(
        `--without: expected steps of ${recipeStepNames.join(', ')}, separated by commas, got ${JSON.stringify(name)}`,
      );
    }),
  );
}

function autoOrNumber(name: string, given: string): number | 'auto' {
  if (given === 'auto') return given;
  const value = Number(given);
  if (given.trim() === '' || !Number.isFinite(value))
    throw new ConfigError(`--${name}: expected auto or a number, got ${JSON.stringify(given)}`);
  return value;
}

function tableOf(report: ConversionReport): string {
  const { cacheFloatsBefore, cacheFloatsAfter } = report;
  const share = ((100 * cacheFloatsAfter) / cacheFloatsBefore).toFixed(0);
  const rows = [
    ['source', report.originalPpl.toFixed(4), `${cacheFloatsBefore}`],
    [`rope on ${report.ropeDim} numbers only`, report.afterRopePpl.toFixed(4), ''],
    ['converted', report.afterRankPpl.toFixed(4), `${cacheFloatsAfter} (${share} %)`],
  ];
  const table = formatTable(['', 'perplexity', 'cache numbers per token and layer'], rows);
  return `${table}\nrope ${report.ropeDim} + latent ${report.kvRank}, freqfold ${report.freqfold}; perplexity on ${report.heldOutTokens} held-out tokens (${report.calibration}); ${report.seconds.toFixed(1)} s`;
}
