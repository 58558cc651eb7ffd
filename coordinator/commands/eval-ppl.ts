/**
 * `tpla eval ppl`: perplexity of a text. Protocol: tokenise the whole file once, cut it into non-overlapping windows,
 * run each alone from position 0, do not score its first token; natural logarithms, summed in float64. Tokens behind
 * the last whole window are left out. Computes in float32 unless told otherwise: it measures the model, not the storage.
 */
import type { Argv } from 'yargs';
import { z } from 'zod';
import { ConfigError } from '../../config/errors.ts';
import { layOut } from '../cluster-layout.ts';
import type { Cluster } from '../cluster.ts';
import type { CommandContext } from '../command-context.ts';
import { score } from '../engine.ts';
import { ResumableWork } from '../eval/resumable.ts';
import { schemeSettings } from '../eval/settings.ts';
import { requireDecoded, textWindowFlags, windowsOf } from '../eval/text-windows.ts';
import { clusterFlagsWithoutWindow, decodeFromFlag, jsonFlag, number, outFlag, type FlagsOf } from '../flags.ts';
import { openModel, startCluster } from '../session.ts';
import { openText, readGivenText } from '../text.ts';

const pplFlags = <T>(command: Argv<T>) =>
  textWindowFlags(jsonFlag(clusterFlagsWithoutWindow(command)))
    .option('bos', {
      choices: ['none', 'each'] as const,
      default: 'none' as const,
      describe: "each: every window gets the model's start token before its tokens; its first token stays unscored",
    })
    .option('decode-from', decodeFromFlag)
    .option('bucket', number('bucket', 1, 1_048_576, true, 128, 'positions of each point of the curve in the report'))
    .option('out', outFlag)
    .epilogue(
      'Here --weights and --cache-type default to f32: exact arithmetic. With --weights keep a quantised model is measured as it is served, 8-bit activations included.',
    );

type PplFlags = FlagsOf<ReturnType<typeof pplFlags>>;

export function addEvalPplCommand<T>(program: Argv<T>, context: CommandContext): Argv<T> {
  return program.command(
    'ppl',
    'perplexity of a text over non-overlapping windows',
    (command) => pplFlags(command),
    (flags) => evalPpl(flags, context),
  );
}

async function evalPpl(flags: PplFlags, context: CommandContext): Promise<void> {
  const source = await readGivenText(flags.text, '--text');
  const sequenceTokens = flags.window + (flags.bos === 'each' ? 1 : 0);
  requireDecoded(flags.decodeFrom, flags.window);
  await using model = await openModel(
    {
      ...flags,
      weights: flags.weights ?? 'f32',
      cacheType: flags.cacheType ?? 'f32',
      window: flags.recentWindow,
      context: flags.context ?? sequenceTokens,
    },
    context,
  );
  const { contextTokens } = layOut(model.checkpoint, model.config).options;
  if (contextTokens < sequenceTokens)
    throw new ConfigError(
      `--window: ${sequenceTokens} tokens do not fit a context of ${contextTokens}; raise --context`,
    );
  const text = await openText(model.checkpoint.path);
  const windows = windowsOf(text.encode(source), flags);
  const prefix = flags.bos === 'each' ? [text.requireBos()] : [];
  const layout = layOut(model.checkpoint, model.config);
  const { text: file, window, bos, skipWindows, decodeFrom, bucket } = flags;
  const settings = { command: 'ppl', file, window, bos, skipWindows, windows: windows.length, decodeFrom, bucket };
  const scheme = schemeSettings(model.checkpoint, layout);
  const work = await ResumableWork.open(flags.out, { ...settings, ...scheme }, context.log);
  await using cluster = await startCluster(model, context);
  const results = await work.run({
    label: 'scoring',
    unit: 'windows',
    items: windows,
    schema: z.array(bucketSchema),
    work: (ids) => scoreWindow(cluster, [...prefix, ...ids], prefix.length + 1 + (decodeFrom ?? 0), flags),
  });
  const tokens = sumOf(results.flat(), ({ count }) => count);
  const nllPerWindow = results.map((buckets) => sumOf(buckets, ({ nll }) => nll));
  const nll = sumOf(results.flat(), (each) => each.nll) / tokens;
  const report = {
    ppl: Math.exp(nll),
    nll,
    tokens,
    windows: windows.length,
    protocol: protocolOf(flags),
    nllPerWindow,
    curve: curveOf(results),
    ...scheme,
  };
  await work.finish(report);
  if (flags.json) context.write(`${JSON.stringify(report)}\n`);
  else
    context.write(
      `perplexity ${report.ppl.toFixed(5)} (nll ${report.nll.toFixed(6)} over ${report.tokens} tokens of ${report.windows} windows; ${report.protocol})\n`,
    );
}

function protocolOf({ window, bos, skipWindows, decodeFrom }: PplFlags): string {
  const decoded = decodeFrom === undefined ? '' : `, scored in decode from token ${decodeFrom} on`;
  const skipped = skipWindows === 0 ? '' : `, first ${skipWindows} left out`;
  return `non-overlapping windows of ${window} tokens${skipped}, first token unscored, bos ${bos}${decoded}`;
}

/** Consecutive positions of a window: the first of them, and the sum of their negative log-likelihoods. */
const bucketSchema = z.strictObject({ from: z.number(), count: z.number(), nll: z.number() });
type Bucket = z.infer<typeof bucketSchema>;

/**
 * The first token of the text stays unscored also when a start token could predict it.
 * @param ids start token, if any, and text  @param firstScored row of `ids`
 */
async function scoreWindow(
  cluster: Cluster,
  ids: readonly number[],
  firstScored: number,
  { decodeFrom, bucket }: PplFlags,
): Promise<Bucket[]> {
  const nll = await score(cluster, { ids, decodeFrom: decodeFrom === undefined ? ids.length : firstScored - 1 });
  const buckets: Bucket[] = [];
  for (let from = firstScored; from < ids.length; from += bucket) {
    const own = nll.subarray(from, from + bucket);
    buckets.push({ from, count: own.length, nll: own.reduce((sum, value) => sum + value, 0) });
  }
  return buckets;
}

/** Perplexity of the same positions of all windows. */
function curveOf(results: readonly (readonly Bucket[])[]): { from: number; ppl: number }[] {
  return (results[0] ?? []).map(({ from }, i) => {
    const own = results.flatMap((buckets) => buckets.slice(i, i + 1));
    return { from, ppl: Math.exp(sumOf(own, ({ nll }) => nll) / sumOf(own, ({ count }) => count)) };
  });
}

function sumOf(buckets: readonly Bucket[], value: (bucket: Bucket) => number): number {
  return buckets.reduce((sum, bucket) => sum + value(bucket), 0);
}
