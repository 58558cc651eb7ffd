/**
 * A folder that appears whole or not at all: it is filled under a temporary name beside its place and renamed when its
 * maker has returned. Refuses a place that holds anything, unless it is a checkpoint and replacing it was asked for.
 */
import { mkdir, mkdtemp, readdir, rename, rm } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { ConfigError, messageOf } from '../../config/errors.ts';

/** @throws ConfigError naming the flag and what is in the way. Call before long work. */
export async function checkOutputFolder(folder: string, force: boolean): Promise<void> {
  let names: string[];
  try {
    names = await readdir(folder);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return;
    throw new ConfigError(`out: ${folder} is no folder that can be read: ${messageOf(error)}`, { cause: error });
  }
  if (names.length === 0) return;
  if (!force)
    throw new ConfigError(`out: ${folder} holds ${names.length} files already; name another folder or give --force`);
  // --force must not delete what no conversion wrote: a mistyped path may be somebody's home.
  if (!names.includes('config.json') || !names.includes('model.safetensors'))
    throw new ConfigError(
      `out: ${folder} holds files but no converted checkpoint (config.json and model.safetensors); --force replaces only those`,
    );
}

/**
 * @param fill writes into the folder it is given, which is renamed to `folder` afterwards and removed when it throws
 * @throws ConfigError as checkOutputFolder
 */
export async function makeFolder<Result>(
  folder: string,
  force: boolean,
  fill: (temporary: string) => Promise<Result>,
): Promise<Result> {
  await checkOutputFolder(folder, force);
  const place = resolve(folder);
  await mkdir(dirname(place), { recursive: true });
  const temporary = await mkdtemp(join(dirname(place), `.${basename(place)}.part-`));
  try {
    const filled = join(temporary, 'new');
    await mkdir(filled);
    const result = await fill(filled);
    // Checked again: the work may have taken minutes.
    await checkOutputFolder(folder, force);
    await moveAside(place, join(temporary, 'old'));
    await rename(filled, place);
    return result;
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

async function moveAside(place: string, aside: string): Promise<void> {
  try {
    await rename(place, aside);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return;
    throw error;
  }
}
