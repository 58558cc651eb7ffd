/**
 * A folder that appears whole or not at all: it is filled under a temporary name beside its place and renamed when its
 * maker has returned. Refuses a place that holds anything, unless it is a checkpoint and replacing it was asked for. What
 * a maker left that was killed or interrupted is taken over by one that makes the same thing, and otherwise removed.
 */
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { ConfigError, messageOf, PeerError } from '../../config/errors.ts';
import { Interruption } from '../command-context.ts';

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

/** Names what is being made, inside its temporary folder. */
const keyFile = 'key';

/**
 * @param key of what is made: a maker with the same key finds the `scratch` of one that was killed or interrupted
 * @param fill writes into the folder it is given, which is renamed to `folder` afterwards; `scratch`, beside it, is for
 *   what is needed meanwhile. When it throws, both are removed, except for a maker that may come back: after an
 *   interruption or the death of a rank.
 * @throws ConfigError as checkOutputFolder, and for a disk that is full or must not be written to
 */
export async function makeFolder<Result>(
  folder: string,
  force: boolean,
  key: string,
  fill: (temporary: string, scratch: string) => Promise<Result>,
): Promise<Result> {
  await checkOutputFolder(folder, force);
  const place = resolve(folder);
  const temporary = await makeTemporary(place, folder, key);
  let isKept = false;
  try {
    const [filled, scratch] = [join(temporary, 'new'), join(temporary, 'scratch')];
    await rm(filled, { recursive: true, force: true });
    await mkdir(filled);
    await mkdir(scratch, { recursive: true });
    const result = await fill(filled, scratch);
    // Checked again: the work may have taken minutes.
    await checkOutputFolder(folder, force);
    // Without force only an empty folder may give way, and rename sees to that even if another process was faster.
    if (force) await moveAside(place, join(temporary, 'old'));
    await rename(filled, place);
    return result;
  } catch (error) {
    isKept = error instanceof Interruption || error instanceof PeerError;
    throw diskError(error, folder) ?? error;
  } finally {
    if (!isKept) await rm(temporary, { recursive: true, force: true });
  }
}

/** Temporary names say who made them, so that what an ended process left is known to the next. */
async function makeTemporary(place: string, folder: string, key: string): Promise<string> {
  const parent = dirname(place);
  const prefix = `.${basename(place)}.part-${hostname()}-`;
  try {
    await mkdir(parent, { recursive: true });
    let taken: string | undefined;
    for (const name of await readdir(parent)) {
      const [, pid, random] = (name.startsWith(prefix) && /^(\d+)-(.*)/.exec(name.slice(prefix.length))) || [];
      if (pid === undefined || isAlive(Number(pid))) continue;
      const left = join(parent, name);
      if (taken === undefined && (await keyOf(left)) === key)
        taken = await takeOver(left, join(parent, `${prefix}${process.pid}-${random ?? ''}`));
      else await rm(left, { recursive: true, force: true });
    }
    if (taken !== undefined) return taken;
    const made = await mkdtemp(join(parent, `${prefix}${process.pid}-`));
    await writeFile(join(made, keyFile), key);
    return made;
  } catch (error) {
    throw (
      diskError(error, folder) ?? new ConfigError(`out: cannot make ${folder}: ${messageOf(error)}`, { cause: error })
    );
  }
}

async function keyOf(folder: string): Promise<string | undefined> {
  return await readFile(join(folder, keyFile), 'utf8').catch(() => undefined);
}

/** undefined when another process was faster. */
async function takeOver(left: string, name: string): Promise<string | undefined> {
  return await rename(left, name).then(
    () => name,
    () => undefined,
  );
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it lives, and is another user's.
    return !(error instanceof Error && 'code' in error && error.code === 'ESRCH');
  }
}

/** What the user can do about a disk; undefined for other errors. */
function diskError(error: unknown, folder: string): ConfigError | undefined {
  const cause = error instanceof ConfigError ? error.cause : error;
  const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
  const advice =
    code === 'ENOSPC' || code === 'EDQUOT'
      ? 'the disk is full; `tpla convert --dry-run` says how much is needed. Free some, or name a folder on another disk'
      : code === 'EACCES' || code === 'EPERM' || code === 'EROFS'
        ? 'it must not be written to; name a folder of yours'
        : undefined;
  if (advice === undefined) return undefined;
  return new ConfigError(`out: cannot write ${folder}: ${advice} (${messageOf(error)}). Nothing was left there`, {
    cause: error,
  });
}

async function moveAside(place: string, aside: string): Promise<void> {
  try {
    await rename(place, aside);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return;
    throw error;
  }
}
