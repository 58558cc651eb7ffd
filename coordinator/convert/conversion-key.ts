/**
 * What a conversion depends on, as a name: the source's configuration and weights, the settings, the calibration text. The
 * number of ranks is not part of it, the backend is. Read next: cached-conversion.ts, output-folder.ts.
 */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { type Checkpoint, layerRoles, modelRoles, type LayerRole, type ModelRole } from '../../model/checkpoint.ts';
import { isOwnText } from './calibration-text.ts';
import type { ConversionOptions } from './conversion-options.ts';

/** Counts changes of what the same settings give. */
const version = 3;

export type KeyedOptions = Pick<
  ConversionOptions,
  | 'method'
  | 'sizes'
  | 'near'
  | 'without'
  | 'calibration'
  | 'calibrationTokens'
  | 'seed'
  | 'dtype'
  | 'untouched'
  | 'cluster'
>;

/** 16 hex digits */
export async function conversionKey(source: Checkpoint, options: KeyedOptions): Promise<string> {
  const { method, sizes, near, without, calibration, calibrationTokens, seed, dtype, untouched, cluster } = options;
  const settings = {
    method,
    sizes,
    near,
    without: [...without].sort(),
    calibration,
    calibrationTokens,
    seed,
    dtype,
    untouched,
  };
  const { backend } = cluster.compute;
  const hash = createHash('sha256').update(JSON.stringify([version, source.identity, settings, backend]));
  await addWeights(hash, source);
  // A file that cannot be read is reported by the conversion.
  for (const path of isOwnText(calibration) ? [] : calibration) {
    const text = await readFile(path).catch(() => undefined);
    if (text !== undefined) hash.update(text);
  }
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
