/**
 * `tpla demo` (`npm start`): fetches the default model and converts it, each once, then answers one prompt on two ranks
 * with the latent cut over them. What it makes stays in the cache folder.
 */
import { existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { Argv } from 'yargs';
import { clusterSchema } from '../../config/cluster.ts';
import { openCheckpoint } from '../../model/open.ts';
import type { CommandContext } from '../command-context.ts';
import { wholeRecipe } from '../../model/transmla/recipe-steps.ts';
import { convertCheckpoint } from '../convert/convert-checkpoint.ts';
import { cacheFolder, resolveModel } from '../fetch.ts';
import { jsonFlag, type FlagsOf } from '../flags.ts';
import { openText } from '../text.ts';
import { run } from './run.ts';

const demoPrompt = 'What is the capital of France?';
const demoRanks = 2;
/** Enough for the statistics of a small model; more would lose less but keep a first user waiting. */
const calibrationTokens = 2048;

const demoFlags = <T>(command: Argv<T>) =>
  jsonFlag(command)
    .option('model', {
      type: 'string',
      default: 'default',
      describe: 'GQA model to convert and run: Hugging Face folder, GGUF file, or `default`',
    })
    .option('prompt', { type: 'string', default: demoPrompt, describe: 'text to answer' });

export function addDemoCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'demo',
    'fetch the default model, convert it, answer a prompt on two ranks that share its latent cache',
    (command) => demoFlags(command),
    (flags) => demo(flags, context),
  );
}

async function demo(flags: FlagsOf<ReturnType<typeof demoFlags>>, context: CommandContext): Promise<void> {
  const source = await resolveModel(flags.model, context);
  const model = await convertedModel(source, context);
  if (!flags.json) context.log(`> ${flags.prompt}`);
  await run(
    {
      model,
      ranks: demoRanks,
      scheme: 'tpla',
      window: 64,
      sinks: 4,
      prompt: flags.prompt,
      raw: false,
      system: undefined,
      chatTemplate: undefined,
      maxTokens: 64,
      temperature: 0,
      topK: 0,
      topP: 1,
      minP: 0,
      repeatPenalty: 1,
      seed: undefined,
      stop: undefined,
      json: flags.json,
    },
    context,
  );
}

/** The converted form of a model, made once and kept in the cache folder. */
async function convertedModel(source: string, context: CommandContext): Promise<string> {
  const out = join(cacheFolder(context.env), await convertedName(source));
  // The conversion gives a folder its name only when it is complete.
  if (existsSync(out)) return out;
  context.log(`converting ${basename(source)} to a latent cache (once); it stays in ${out}`);
  const { compute, collective, ranks } = clusterSchema.parse({ model: source, ranks: new Array(demoRanks).fill({}) });
  const report = await convertCheckpoint({
    model: source,
    out,
    method: 'recipe',
    without: wholeRecipe,
    force: false,
    sizes: { exact: false, ropeDim: null, kvRank: null, cacheRatio: null, freqfold: 'auto', balance: 'auto' },
    calibration: 'self',
    calibrationTokens,
    seed: 1,
    dtype: 'f16',
    untouched: 'keep',
    text: await openText(source),
    cluster: { compute, collective, ranks },
    log: context.log,
    signal: context.signal,
  });
  const { cacheFloatsBefore, cacheFloatsAfter, originalPpl, afterRankPpl, seconds } = report;
  context.log(
    `converted in ${seconds.toFixed(0)} s: ${cacheFloatsAfter} instead of ${cacheFloatsBefore} cache numbers per token and layer, ` +
      `perplexity ${afterRankPpl.toFixed(2)} instead of ${originalPpl.toFixed(2)}`,
  );
  return out;
}

/** Another model, or another version of it, gets another name. */
async function convertedName(source: string): Promise<string> {
  await using checkpoint = await openCheckpoint(source);
  return `${basename(source).replace(/\.(gguf|safetensors)$/, '')}-mla-recipe-${checkpoint.identity.slice(0, 12)}`;
}
