/** `tpla convert SRC --out DIR`: a GQA checkpoint becomes an MLA one without training, with a report of what it cost. */
import type { Argv } from 'yargs';
import { loadClusterConfig } from '../../config/load.ts';
import type { ExactTokens } from '../../config/shard-plan.ts';
import type { CommandContext } from '../command-context.ts';
import { textForConversion } from '../convert/cached-conversion.ts';
import { conversionFlags, conversionSettings } from '../convert/conversion-flags.ts';
import type { ConversionReport, ConversionRequest } from '../convert/conversion-options.ts';
import { convertCheckpoint, dryRun } from '../convert/convert-checkpoint.ts';
import { explain } from '../convert/explain.ts';
import type { ConversionPrediction } from '../convert/predict.ts';
import { resolveModel } from '../fetch.ts';
import { jsonFlag, number, ownRanksFlags, type FlagsOf } from '../flags.ts';
import { formatBytes, formatTable } from '../table.ts';

const convertFlags = <T>(command: Argv<T>) =>
  ownRanksFlags(conversionFlags(jsonFlag(command)), 'worker processes that calibrate and measure (default: 2)')
    .positional('source', {
      type: 'string',
      demandOption: true,
      describe: 'model to convert: Hugging Face folder, GGUF file, or `default` (fetched once)',
    })
    .option('out', { type: 'string', demandOption: true, describe: 'folder to make; must be empty or absent' })
    .option('force', { type: 'boolean', default: false, describe: 'replace a converted checkpoint that is there' })
    .option('dry-run', {
      type: 'boolean',
      default: false,
      describe: 'check everything, predict sizes, memory and disk, and change nothing',
    })
    .option('explain', { type: 'boolean', default: false, describe: 'recipe: print where each layer loses' })
    .option('seed', number('seed', 0, 0xffffffff, true, 0, 'of the text that the model writes; same seed, same bytes'));

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
  const options = await optionsOf(flags, context);
  if (flags.dryRun) {
    const prediction = await dryRun(options);
    context.write(
      flags.json ? `${JSON.stringify({ out: flags.out, prediction })}\n` : `${predictionText(prediction)}\n`,
    );
    return;
  }
  const report = await convertCheckpoint(options);
  if (flags.json) context.write(`${JSON.stringify({ out: flags.out, report })}\n`);
  else context.write(`${tableOf(report)}\n`);
  if (flags.explain) context.log(explain(report.layers));
}

async function optionsOf(flags: ConvertFlags, context: CommandContext): Promise<ConversionRequest> {
  const { backend, transport, threads, ranks } = flags;
  const cluster = await loadClusterConfig({ flags: { model: flags.source, backend, transport, threads, ranks } });
  const model = await resolveModel(cluster.model, context);
  return {
    model,
    ...conversionSettings(flags),
    out: flags.out,
    force: flags.force,
    seed: flags.seed,
    text: await textForConversion(model, context),
    cluster,
    log: context.log,
    signal: context.signal,
  };
}

function tableOf(report: ConversionReport): string {
  const { cacheFloatsBefore, cacheFloatsAfter } = report;
  const share = ((100 * cacheFloatsAfter) / cacheFloatsBefore).toFixed(0);
  const rows = [
    ['source', report.originalPpl.toFixed(4), `${cacheFloatsBefore}`],
    [`rope on ${report.ropeDim} numbers only`, report.afterRopePpl.toFixed(4), ''],
    ['converted', report.afterRankPpl.toFixed(4), `${cacheFloatsAfter} (${share} %)`],
  ];
  const near = nearTokensText(report.nearTokens, cacheFloatsBefore);
  const table = formatTable(['', 'perplexity', 'cache numbers per token and layer'], rows);
  return `${table}\n${near}rope ${report.ropeDim} + latent ${report.kvRank}, freqfold ${report.freqfold}; perplexity on ${report.heldOutTokens} held-out tokens (${report.calibration}); ${report.seconds.toFixed(1)} s`;
}

/** A line, or nothing where no tokens keep their keys and values. */
function nearTokensText({ sinks, window }: ExactTokens, cacheFloats: number): string {
  if (sinks + window === 0) return '';
  return `the first ${sinks} and last ${window} tokens of a sequence keep the source's ${cacheFloats} numbers beside that\n`;
}

function predictionText(prediction: ConversionPrediction): string {
  const { candidates, cacheFloatsBefore, cacheFloatsAfter } = prediction;
  const sizes = candidates.map(({ ropeDim, kvRank }) => `${ropeDim} + ${kvRank}`).join(', ');
  const share = ((100 * cacheFloatsAfter) / cacheFloatsBefore).toFixed(0);
  const rows = [
    ['cache numbers per token and layer', `${cacheFloatsBefore}`, `${cacheFloatsAfter} (${share} %)`],
    [
      'cache per token, f16',
      formatBytes(prediction.cacheBytesPerTokenBefore),
      formatBytes(prediction.cacheBytesPerTokenAfter),
    ],
    [
      'near tokens per sequence, f32',
      '',
      prediction.nearBytesPerSequence > 0 ? formatBytes(prediction.nearBytesPerSequence) : 'none',
    ],
    ['weight files', formatBytes(prediction.sourceBytes), formatBytes(prediction.outputBytes)],
    ['disk while converting', '', formatBytes(prediction.peakDiskBytes)],
    ['disk free', '', formatBytes(prediction.freeDiskBytes)],
    ['memory, this process (about)', '', formatBytes(prediction.coordinatorMemoryBytes)],
    ['memory, each rank (about)', '', formatBytes(prediction.rankMemoryBytes)],
  ];
  return `${formatTable(['', 'source', 'converted'], rows)}\nmethod ${prediction.method}; rope + latent: ${sizes}${candidates.length > 1 ? ' (one is chosen after calibration)' : ''}; ${prediction.calibrationTokens} tokens to fit on, ${prediction.heldOutTokens} to judge by; nothing was written`;
}
