/** `tpla inspect SRC`: sizes of a model, its matrices and their storage, and what a token costs in the cache. */
import type { Argv } from 'yargs';
import { clusterSchema } from '../../config/cluster.ts';
import type { ModelConfig } from '../../config/model-config.ts';
import { openBareFile } from '../../model/bare-file.ts';
import { layerRoles, modelRoles, type Checkpoint, type WeightShape } from '../../model/checkpoint.ts';
import { openSizes } from '../../model/config-only.ts';
import type { TensorStore } from '../../model/tensor-store.ts';
import { rowBytes } from '../../model/tensor-types.ts';
import type { CommandContext } from '../command-context.ts';
import { resolveModel } from '../fetch.ts';
import { jsonFlag, number, type FlagsOf } from '../flags.ts';
import { cacheBytesByScheme, cacheNumbersByScheme } from '../plan-report.ts';
import { formatBytes, formatTable } from '../table.ts';

const inspectFlags = <T>(command: Argv<T>) =>
  jsonFlag(command)
    .positional('source', {
      type: 'string',
      demandOption: true,
      describe: 'Hugging Face folder, config.json, GGUF file, or `default`',
    })
    .option('ranks', number('ranks', 1, 64, true, 2, 'ranks for which cache sizes are shown'));

type InspectFlags = FlagsOf<ReturnType<typeof inspectFlags>>;

export function addInspectCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'inspect <source>',
    'show architecture, weights, quantisation and cache bytes per token of a model',
    (command) => inspectFlags(command),
    (flags) => inspect(flags, context),
  );
}

async function inspect(flags: InspectFlags, context: CommandContext): Promise<void> {
  const source = await resolveModel(flags.source, context);
  await using bare = await openBareFile(source);
  if (bare !== undefined) {
    context.write(flags.json ? `${JSON.stringify(documentOfTensors(source, bare))}\n` : textOfTensors(source, bare));
    return;
  }
  await using checkpoint = await openSizes(source);
  const { path, format, config, weightFileBytes, identity } = checkpoint;
  const weights = weightRows(checkpoint);
  const cacheType = clusterSchema.shape.cache.parse({}).type;
  const cacheNumbersPerTokenAndLayer = cacheNumbersByScheme(config, flags.ranks);
  const cacheBytesPerToken = cacheBytesByScheme(config, cacheType, flags.ranks);
  if (flags.json) {
    const document = { path, format, identity, weightFileBytes, config, weights, cacheType };
    context.write(`${JSON.stringify({ ...document, cacheNumbersPerTokenAndLayer, cacheBytesPerToken })}\n`);
    return;
  }
  const { architecture, numLayers, hiddenDim, numHeads, vocabSize, contextLength, attention } = config;
  const heads =
    attention.kind === 'gqa'
      ? `${numHeads} heads of ${attention.headDim}, ${attention.numKvHeads} KV heads`
      : `${numHeads} heads, latent ${attention.latentDim} + rope ${attention.ropeDim}, nope ${attention.nopeDim}, value ${attention.valueDim}`;
  context.write(
    [
      `${path}: ${format}, ${formatBytes(weightFileBytes)}, identity ${identity.slice(0, 16)}`,
      `${architecture} (${attention.kind}): ${numLayers} layers, hidden ${hiddenDim}, ${heads}, ${feedForwardText(config)}, ` +
        `vocabulary ${vocabSize}${config.tiedEmbeddings ? ' (head tied to the embedding)' : ''}, context ${contextLength}`,
      formatTable(
        ['weight', 'count', 'rows', 'columns', 'type', 'bytes'],
        weights.map((row) => [
          row.role,
          `${row.count}`,
          `${row.rows}`,
          `${row.cols}`,
          row.type,
          formatBytes(row.bytes),
        ]),
      ),
      `cache of one token, one layer, on each rank: ${Object.entries(cacheNumbersPerTokenAndLayer)
        .map(([scheme, numbers]) => `${scheme} ${numbers} numbers`)
        .join(', ')}`,
      `cache of one token, all layers, ${cacheType}: ${Object.entries(cacheBytesPerToken)
        .map(([scheme, bytes]) => `${scheme} ${Math.round(bytes)} B`)
        .join(', ')}`,
      '',
    ].join('\n'),
  );
}

/** A file of tensors without a model around them. */
function documentOfTensors(path: string, { format, fileBytes, tensors }: TensorStore) {
  const rows = [...tensors.values()].map(({ name, type, shape, bytes }) => ({ name, type, shape, bytes }));
  return { path, format, weightFileBytes: fileBytes, config: null, tensors: rows };
}

function textOfTensors(path: string, store: TensorStore): string {
  const { format, weightFileBytes, tensors } = documentOfTensors(path, store);
  const rows = tensors.map(({ name, type, shape, bytes }) => [name, `[${shape.join(', ')}]`, type, formatBytes(bytes)]);
  return [
    `${path}: ${format}, ${formatBytes(weightFileBytes)}, ${rows.length} tensors; nothing says of which model`,
    ...(rows.length === 0 ? [] : [formatTable(['tensor', 'shape', 'type', 'bytes'], rows)]),
    '',
  ].join('\n');
}

function feedForwardText({ feedForward, experts }: ModelConfig): string {
  if (experts === null) return `feed-forward ${feedForward.dim}`;
  const { layers, count, perToken, dim, sharedDim } = experts;
  const dense = layers.filter((isRouted) => !isRouted).length;
  const shared = sharedDim > 0 ? `, shared ${sharedDim}` : '';
  const text = `${perToken} of ${count} experts of ${dim}${shared}`;
  return dense === 0 ? text : `${text} (${dense} layers dense: ${feedForward.dim})`;
}

interface WeightRow extends WeightShape {
  readonly role: string;
  /** Weights of this role, shape and type: layers may be quantised differently. */
  readonly count: number;
  readonly bytes: number;
}

function weightRows(checkpoint: Checkpoint): WeightRow[] {
  const rows = new Map<string, WeightRow>();
  const add = (role: string, shape: WeightShape | undefined): void => {
    if (shape === undefined) return;
    const key = `${role} ${shape.rows} ${shape.cols} ${shape.type}`;
    const before = rows.get(key);
    const bytes = shape.rows * rowBytes(shape.type, shape.cols);
    rows.set(key, { role, ...shape, count: (before?.count ?? 0) + 1, bytes: (before?.bytes ?? 0) + bytes });
  };
  for (const role of modelRoles) add(role, checkpoint.shapeOf(role));
  for (const role of layerRoles)
    for (let layer = 0; layer < checkpoint.config.numLayers; layer++) add(role, checkpoint.shapeOf(role, layer));
  return [...rows.values()];
}
