/**
 * `tpla demo` (`npm start`): fetches the default model and converts it, each once, then answers one prompt on two ranks
 * with the latent cut over them. What it makes stays in the cache folder.
 */
import type { Argv } from 'yargs';
import { clusterSchema } from '../../config/cluster.ts';
import type { CommandContext } from '../command-context.ts';
import { cachedConversion } from '../convert/cached-conversion.ts';
import { conversionSettings } from '../convert/conversion-flags.ts';
import { resolveModel } from '../fetch.ts';
import { jsonFlag, type FlagsOf } from '../flags.ts';
import { run } from './run.ts';

const demoPrompt = 'What is the capital of France? Answer in one short sentence.';
const demoRanks = 2;
/** Enough for the statistics of a small model; more, and the refit, would lose less but keep a first user waiting. */
const calibrationTokens = 2048;
/** Half the cache of the default model, in the split that loses least: what the search would take a while to find. */
const defaultSizes = { ropeDim: 48, kvRank: 144 };

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
  const { compute, collective, ranks } = clusterSchema.parse({ model: source, ranks: new Array(demoRanks).fill({}) });
  const settings = conversionSettings({
    calibrationTokens,
    without: ['refit'],
    ...(flags.model === 'default' ? defaultSizes : {}),
  });
  const model = await cachedConversion(source, settings, { compute, collective, ranks }, context);
  if (!flags.json) context.log(`> ${flags.prompt}`);
  await run(
    {
      model,
      ranks: demoRanks,
      scheme: 'tpla',
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
