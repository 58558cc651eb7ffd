/**
 * `tpla eval logits`: the logits after every token, written to a safetensors file, for comparison with other programs.
 * Computes in float32 with a float32 cache unless told otherwise: what differs then is arithmetic, not storage.
 */
import type { Argv } from 'yargs';
import { ConfigError } from '../../config/errors.ts';
import { writeSafetensors } from '../../model/safetensors.ts';
import { layOut } from '../cluster-layout.ts';
import type { CommandContext } from '../command-context.ts';
import { windowLogits } from '../engine.ts';
import { clusterFlags, decodeFromFlag, jsonFlag, type FlagsOf } from '../flags.ts';
import { openModel, startCluster } from '../session.ts';
import { openText, readGivenText } from '../text.ts';

const logitsFlags = <T>(command: Argv<T>) =>
  jsonFlag(clusterFlags(command))
    .option('ids', { type: 'string', describe: 'token ids, such as 1,2,3' })
    .option('text', { type: 'string', describe: 'UTF-8 text file, tokenised without start token' })
    .option('out', {
      type: 'string',
      demandOption: true,
      describe: 'safetensors file; tensor `logits` [tokens, vocabulary] f32',
    })
    .option('decode-from', decodeFromFlag)
    .conflicts('ids', 'text')
    .epilogue('Here --weights and --cache-type default to f32: exact arithmetic.');

type LogitsFlags = FlagsOf<ReturnType<typeof logitsFlags>>;

export function addEvalLogitsCommand<T>(program: Argv<T>, context: CommandContext): Argv<T> {
  return program.command(
    'logits',
    'logits after every token, to a safetensors file (float32 unless --weights or --cache-type says otherwise)',
    (command) => logitsFlags(command),
    (flags) => evalLogits(flags, context),
  );
}

async function evalLogits(flags: LogitsFlags, context: CommandContext): Promise<void> {
  const given = await givenTokens(flags);
  const weights = flags.weights ?? 'f32';
  const cacheType = flags.cacheType ?? 'f32';
  await using model = await openModel({ ...flags, weights, cacheType }, context);
  const { checkpoint, config } = model;
  const ids = typeof given === 'string' ? (await openText(checkpoint.path)).encode(given) : given;
  requireValid(ids, checkpoint.config.vocabSize, layOut(checkpoint, config).options.contextTokens);
  const decodeFrom = flags.decodeFrom ?? ids.length;
  if (flags.decodeFrom !== undefined && decodeFrom >= ids.length)
    throw new ConfigError(`--decode-from: ${decodeFrom} leaves nothing of ${ids.length} tokens; use less`);
  await using cluster = await startCluster(model, context);
  const logits = new Float32Array(ids.length * cluster.vocabSize); // [tokens, vocabSize]
  const pieces = windowLogits(cluster, { ids, decodeFrom }, { from: 0, rowsAtOnce: cluster.options.maxStepTokens });
  for await (const { rows, firstRow } of pieces) logits.set(rows, firstRow * cluster.vocabSize);
  await writeSafetensors(flags.out, [
    {
      name: 'logits',
      type: 'f32',
      shape: [ids.length, cluster.vocabSize],
      read: () => new Uint8Array(logits.buffer, logits.byteOffset, logits.byteLength),
    },
  ]);
  const report = {
    out: flags.out,
    tokens: ids.length,
    vocabSize: cluster.vocabSize,
    scheme: cluster.plan.scheme,
    ranks: cluster.plan.worldSize,
    weights,
    cacheType,
  };
  if (flags.json) context.write(`${JSON.stringify(report)}\n`);
  else context.write(`${flags.out}: logits [${ids.length}, ${cluster.vocabSize}]\n`);
}

/** Ids, or a text that still needs the model's tokenizer. */
async function givenTokens({ ids, text }: LogitsFlags): Promise<number[] | string> {
  if (text !== undefined) return readGivenText(text, '--text');
  if (ids === undefined) throw new ConfigError('eval logits: give --ids 1,2,3 or --text FILE');
  return ids.split(',').map((word) => {
    if (/^\s*\d+\s*$/.test(word)) return Number(word);
    throw new ConfigError(`--ids: expected whole numbers such as 1,2,3, got ${JSON.stringify(word)}`);
  });
}

function requireValid(ids: readonly number[], vocabSize: number, contextTokens: number): void {
  const outside = ids.find((id) => id >= vocabSize);
  if (outside !== undefined)
    throw new ConfigError(`--ids: ${outside} is not below the vocabulary size ${vocabSize}; use ids of this model`);
  if (ids.length === 0) throw new ConfigError('eval logits: the text has no tokens; give a longer one');
  if (ids.length > contextTokens)
    throw new ConfigError(
      `eval logits: ${ids.length} tokens do not fit a context of ${contextTokens}; raise --context`,
    );
}
