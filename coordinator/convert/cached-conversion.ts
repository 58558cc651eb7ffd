/**
 * Conversions kept in the cache folder: made on first use, found at once afterwards. The name holds a hash of the model's
 * weights, the settings and the calibration text. A folder has its name only when it is whole; two processes that convert
 * the same model at once both do the work, and the second takes the folder of the first.
 */
import { stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { ClusterConfig } from '../../config/cluster.ts';
import { ConfigError } from '../../config/errors.ts';
import { openCheckpoint } from '../../model/open.ts';
import type { CommandContext } from '../command-context.ts';
import { cacheFolder } from '../fetch.ts';
import { openText } from '../text.ts';
import type { ConversionSettings } from './conversion-flags.ts';
import { conversionKey } from './conversion-key.ts';
import { optionsFor, type ConversionOptions } from './conversion-options.ts';
import { convertCheckpoint } from './convert-checkpoint.ts';

const cacheSeed = 1;

/**
 * @param source path of a checkpoint; one with latent attention is returned as it is
 * @returns path of the converted checkpoint
 */
export async function cachedConversion(
  source: string,
  settings: ConversionSettings,
  cluster: Pick<ClusterConfig, 'compute' | 'collective' | 'ranks'>,
  context: CommandContext,
): Promise<string> {
  const key = await keyOf(source, settings, cluster);
  if (key === undefined) {
    context.log(`${basename(source)} has latent attention already; nothing to convert`);
    return source;
  }
  const name = basename(source).replace(/\.(gguf|safetensors)$/, '');
  const out = join(cacheFolder(context.env), 'converted', `${name}-${key}`);
  if (await exists(out)) return out;
  context.log(`converting ${basename(source)} to a latent cache (once); it stays in ${out}`);
  try {
    const report = await convertCheckpoint({
      ...settings,
      model: source,
      out,
      force: false,
      seed: cacheSeed,
      text: await textForConversion(source, context),
      cluster,
      log: context.log,
      signal: context.signal,
    });
    const { cacheFloatsBefore, cacheFloatsAfter, originalPpl, afterRankPpl, seconds } = report;
    context.log(
      `converted in ${seconds.toFixed(0)} s: ${cacheFloatsAfter} instead of ${cacheFloatsBefore} cache numbers per token and layer, ` +
        `perplexity ${afterRankPpl.toFixed(2)} instead of ${originalPpl.toFixed(2)}`,
    );
  } catch (error) {
    // Another process was faster: its folder is as good.
    if (!(await exists(out))) throw error;
  }
  return out;
}

/** A model without a tokenizer can still be converted; that it is missing is said. */
export async function textForConversion(model: string, context: CommandContext): Promise<ConversionOptions['text']> {
  try {
    return await openText(model);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    context.log(`${error.message}; the converted model will have none either`);
    return null;
  }
}

/** undefined for a model that needs no conversion. */
async function keyOf(
  source: string,
  settings: ConversionSettings,
  cluster: ConversionOptions['cluster'],
): Promise<string | undefined> {
  await using checkpoint = await openCheckpoint(source);
  if (checkpoint.config.attention.kind === 'mla') return undefined;
  return await conversionKey(checkpoint, optionsFor(checkpoint, { ...settings, seed: cacheSeed, cluster }));
}

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}
