/**
 * Conversions kept in the cache folder: made on first use, found at once afterwards. The name holds a hash of the model's
 * weights, the settings and the calibration text. A folder has its name only when it is whole; two processes that convert
 * the same model at once both do the work, and the second takes the folder of the first.
 */
import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { ClusterConfig } from '../../config/cluster.ts';
import { ConfigError } from '../../config/errors.ts';
import { type Checkpoint, layerRoles, modelRoles, type LayerRole, type ModelRole } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import type { CommandContext } from '../command-context.ts';
import { cacheFolder } from '../fetch.ts';
import { openText } from '../text.ts';
import type { ConversionSettings } from './conversion-flags.ts';
import type { ConversionOptions } from './conversion-options.ts';
import { convertCheckpoint } from './convert-checkpoint.ts';

/** Counts changes of what the same settings give. */
const cacheVersion = 1;
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
  const key = await keyOf(source, settings);
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

/** Hex; undefined for a model that needs no conversion. */
async function keyOf(source: string, settings: ConversionSettings): Promise<string | undefined> {
  await using checkpoint = await openCheckpoint(source);
  if (checkpoint.config.attention.kind === 'mla') return undefined;
  const hash = createHash('sha256').update(
    JSON.stringify([
      cacheVersion,
      cacheSeed,
      checkpoint.identity,
      { ...settings, without: [...settings.without].sort() },
    ]),
  );
  await addWeights(hash, checkpoint);
  const { calibration } = settings;
  // A file that cannot be read is reported by the conversion.
  if (calibration !== 'self' && (await exists(calibration))) hash.update(await readFile(calibration));
  return hash.digest('hex').slice(0, 16);
}

/** A row of every weight: enough to tell models of one shape apart without reading them whole. */
async function addWeights(hash: ReturnType<typeof createHash>, checkpoint: Checkpoint): Promise<void> {
  const add = async (role: ModelRole | LayerRole, layer?: number): Promise<void> => {
    const shape = checkpoint.shapeOf(role, layer);
    if (shape === undefined) return;
    const row = Math.floor(shape.rows / 2);
    hash.update((await checkpoint.read(role, layer, { start: row, end: row + 1 })).bytes);
  };
  for (const role of modelRoles) await add(role);
  for (let layer = 0; layer < checkpoint.config.numLayers; layer++)
    for (const role of layerRoles) await add(role, layer);
}

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}
