/**
 * `tpla eval kl`: how far the predictions of a scheme are from exact ones of the same model (or of --reference), position
 * by position. Two clusters run the same pieces of text side by side; nothing is kept but two numbers for each position.
 * Computes in float32 unless told otherwise: what differs then is the scheme, not the storage.
 */
import type { Argv } from 'yargs';
import { z } from 'zod';
import { ConfigError, invariant } from '../../config/errors.ts';
import { openCheckpoint } from '../../model/open.ts';
import { layOut } from '../cluster-layout.ts';
import type { Cluster } from '../cluster.ts';
import type { CommandContext } from '../command-context.ts';
import { windowLogits, type WindowRequest } from '../engine.ts';
import { divergenceOf, summarise, type DivergenceSummary } from '../eval/divergence.ts';
import { ResumableWork } from '../eval/resumable.ts';
import { schemeSettings } from '../eval/settings.ts';
import { requireDecoded, textWindowFlags, windowsOf } from '../eval/text-windows.ts';
import { resolveModel } from '../fetch.ts';
import { clusterFlagsWithoutWindow, decodeFromFlag, jsonFlag, number, outFlag, type FlagsOf } from '../flags.ts';
import { openModel, startCluster, type OpenModel } from '../session.ts';
import { formatTable } from '../table.ts';
import { openText, readGivenText } from '../text.ts';

const klFlags = <T>(command: Argv<T>) =>
  textWindowFlags(jsonFlag(clusterFlagsWithoutWindow(command)))
    .option('decode-from', decodeFromFlag)
    .option('bucket', number('bucket', 1, 1_048_576, true, 128, 'positions of each row of the table'))
    .option('reference', {
      type: 'string',
      describe: 'model to compare with, of the same vocabulary; runs exactly (default: the same model)',
    })
    .option('out', outFlag)
    .epilogue(
      'Here --weights and --cache-type default to f32: exact arithmetic. Two clusters run at once: memory for the model twice.',
    );

type KlFlags = FlagsOf<ReturnType<typeof klFlags>>;

const windowSchema = z.strictObject({ kl: z.array(z.number()), agrees: z.array(z.boolean()) });
type WindowResult = z.infer<typeof windowSchema>;

/** Rows of logits held at once, of either cluster: 64 rows of a 150,000-word vocabulary are 38 MB. */
const rowsAtOnce = 64;

export function addEvalKlCommand<T>(program: Argv<T>, context: CommandContext): Argv<T> {
  return program.command(
    'kl',
    'divergence of a scheme from the exact model at every position: mean, p99, top-1 agreement',
    (command) => klFlags(command),
    (flags) => evalKl(flags, context),
  );
}

async function evalKl(flags: KlFlags, context: CommandContext): Promise<void> {
  const source = await readGivenText(flags.text, '--text');
  requireDecoded(flags.decodeFrom, flags.window);
  const shared = {
    ...flags,
    weights: flags.weights ?? 'f32',
    cacheType: flags.cacheType ?? 'f32',
    context: flags.context ?? flags.window,
  } as const;
  await using model = await openModel({ ...shared, window: flags.recentWindow }, context);
  await using exact = await openExact(model, flags.reference, context);
  requireComparable(model, exact);
  requireRoomFor(flags.window, model);
  const windows = windowsOf((await openText(model.checkpoint.path)).encode(source), flags);
  const scheme = schemeSettings(model.checkpoint, layOut(model.checkpoint, model.config));
  const settings = {
    command: 'kl',
    reference: exact.checkpoint.path,
    text: flags.text,
    windows: [flags.window, flags.skipWindows, windows.length],
    decodeFrom: flags.decodeFrom ?? null,
    ...scheme,
  };
  const work = await ResumableWork.open(flags.out, settings, context.log);
  await using tested = await startCluster(model, context);
  await using reference = await startCluster(exact, context);
  const decodeFrom = flags.decodeFrom ?? flags.window;
  const results = await work.run({
    label: 'comparing',
    unit: 'windows',
    items: windows,
    schema: windowSchema,
    work: (ids) => compare(tested, reference, { ids, decodeFrom }),
  });
  const firstPosition = flags.decodeFrom ?? 0;
  const report = {
    ...summarise(
      results.flatMap(({ kl }) => kl),
      results.flatMap(({ agrees }) => agrees),
    ),
    windows: results.length,
    firstPosition,
    curve: curveOf(results, flags.bucket, firstPosition),
    referenceScheme: reference.plan.scheme,
    ...scheme,
  };
  await work.finish(report);
  context.write(flags.json ? `${JSON.stringify(report)}\n` : `${tableOf(report)}\n`);
}

/** The model to compare with, on ranks that divide its heads, which is exact. */
async function openExact(
  { config }: OpenModel,
  reference: string | undefined,
  context: CommandContext,
): Promise<OpenModel> {
  const checkpoint = await openCheckpoint(await resolveModel(reference ?? config.model, context));
  const scheme = checkpoint.config.attention.kind;
  return {
    checkpoint,
    config: { ...config, attention: { ...config.attention, scheme, latentGroups: 0, window: 0, sinks: 0, overlap: 0 } },
    [Symbol.asyncDispose]: () => checkpoint[Symbol.asyncDispose](),
  };
}

function requireComparable({ checkpoint: { config: tested } }: OpenModel, { checkpoint: { config } }: OpenModel): void {
  if (tested.vocabSize === config.vocabSize) return;
  throw new ConfigError(
    `--reference: its vocabulary has ${config.vocabSize} tokens, the model's ${tested.vocabSize}; name a model with the same tokens`,
  );
}

function requireRoomFor(tokens: number, { checkpoint, config }: OpenModel): void {
  const { contextTokens } = layOut(checkpoint, config).options;
  if (contextTokens < tokens)
    throw new ConfigError(`--window: ${tokens} tokens do not fit a context of ${contextTokens}; raise --context`);
}

/** Of the positions from `decodeFrom` on, or of all when all are prefilled. */
async function compare(tested: Cluster, reference: Cluster, request: WindowRequest): Promise<WindowResult> {
  const { vocabSize } = tested;
  const from = request.decodeFrom >= request.ids.length ? 0 : request.decodeFrom;
  const kl: number[] = [];
  const agrees: boolean[] = [];
  const references = windowLogits(reference, request, { from, rowsAtOnce });
  for await (const piece of windowLogits(tested, request, { from, rowsAtOnce })) {
    const expected = await references.next();
    invariant(expected.done !== true, 'the clusters cut a window differently');
    const divergence = divergenceOf(expected.value.rows, piece.rows, vocabSize);
    kl.push(...divergence.kl);
    agrees.push(...divergence.agrees);
  }
  return { kl, agrees };
}

interface CurvePoint extends DivergenceSummary {
  /** Position in the window of the first of them. */
  readonly from: number;
}

/** Summaries of `bucket` positions each, over all windows. */
function curveOf(results: readonly WindowResult[], bucket: number, firstPosition: number): CurvePoint[] {
  const length = results[0]?.kl.length ?? 0;
  return Array.from({ length: Math.ceil(length / bucket) }, (_, i) => ({
    from: firstPosition + i * bucket,
    ...summarise(
      results.flatMap(({ kl }) => kl.slice(i * bucket, (i + 1) * bucket)),
      results.flatMap(({ agrees }) => agrees.slice(i * bucket, (i + 1) * bucket)),
    ),
  }));
}

interface KlReport extends DivergenceSummary {
  readonly scheme: string;
  readonly referenceScheme: string;
  readonly ranks: number;
  readonly windows: number;
  readonly curve: readonly CurvePoint[];
}

function tableOf(report: KlReport): string {
  const cells = (name: string, { positions, mean, p99, top1Agreement }: DivergenceSummary): string[] => [
    name,
    String(positions),
    mean.toPrecision(4),
    p99.toPrecision(4),
    `${(100 * top1Agreement).toFixed(2)} %`,
  ];
  const rows = report.curve.map((point) => cells(`from ${point.from}`, point));
  const table = formatTable(['position', 'scored', 'mean KL', 'p99 KL', 'same top-1'], [...rows, cells('all', report)]);
  return `${table}\n${report.scheme} on ${report.ranks} ranks against ${report.referenceScheme}, ${report.windows} windows; KL in nats per token`;
}
