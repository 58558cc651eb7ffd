/**
 * `tpla eval ppl`: perplexity of a text. Protocol: tokenise the whole file once, cut it into non-overlapping windows,
 * run each alone from position 0, do not score its first token; natural logarithms, summed in float64. Tokens behind
 * the last whole window are left out. Computes in float32 unless told otherwise: it measures the model, not the storage.
 */
import type { Argv } from 'yargs';
import { ConfigError } from '../../config/errors.ts';
import { layOut } from '../cluster-layout.ts';
import type { Cluster } from '../cluster.ts';
import type { CommandContext } from '../command-context.ts';
import { score, type WindowRequest } from '../engine.ts';
import { requireDecoded, textWindowFlags, windowsOf } from '../eval/text-windows.ts';
import { clusterFlagsWithoutWindow, decodeFromFlag, jsonFlag, type FlagsOf } from '../flags.ts';
import { startProgress } from '../progress.ts';
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
  await using cluster = await startCluster(model, context);
  const result = await scoreWindows(cluster, windows, prefix, flags.decodeFrom);
  const report = {
    ppl: Math.exp(result.nllSum / result.tokens),
    nll: result.nllSum / result.tokens,
    tokens: result.tokens,
    windows: windows.length,
    protocol: protocolOf(flags),
    nllPerWindow: result.nllPerWindow,
    scheme: cluster.plan.scheme,
    ranks: cluster.plan.worldSize,
    weights: cluster.options.weights,
    cacheType: cluster.options.cacheType,
  };
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

interface WindowScores {
  readonly nllSum: number;
  readonly tokens: number;
  readonly nllPerWindow: readonly number[];
}

async function scoreWindows(
  cluster: Cluster,
  windows: readonly number[][],
  prefix: readonly number[],
  decodeFrom: number | undefined,
): Promise<WindowScores> {
  const nllPerWindow: number[] = [];
  let tokens = 0;
  using progress = startProgress('scoring', windows.length, { name: 'windows', size: 1 });
  for (const window of windows) {
    const ids = [...prefix, ...window];
    const request: WindowRequest = {
      ids,
      decodeFrom: decodeFrom === undefined ? ids.length : prefix.length + decodeFrom,
    };
    const nll = await score(cluster, request);
    // The first token of the text stays unscored also when a start token could predict it.
    const firstScored = prefix.length + 1 + (decodeFrom ?? 0);
    nllPerWindow.push(nll.subarray(firstScored).reduce((sum, value) => sum + value, 0));
    tokens += ids.length - firstScored;
    progress.update(nllPerWindow.length);
  }
  return { nllSum: nllPerWindow.reduce((sum, value) => sum + value, 0), tokens, nllPerWindow };
}
