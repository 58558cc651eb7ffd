/**
 * Safetensors files: reads one file or a sharded folder as a TensorStore, and writes one file from a stream of tensors.
 * Reading checks the whole header before any weight is touched (safetensors-header.ts); writing goes to a temporary
 * name first, so that a half-written file never bears the final one, and gives the same bytes for the same tensors.
 */
import { open, readFile, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { z } from 'zod';
import { ConfigError, invariant, messageOf } from '../config/errors.ts';
import { RangedFile } from './ranged-file.ts';
import {
  formatHeader,
  layoutTensors,
  parseHeader,
  type PlannedTensor,
  type TensorHeader,
  type TensorSource,
} from './safetensors-header.ts';
import type { StoredTensor, TensorStore } from './tensor-store.ts';

export type { TensorSource };

export interface SafetensorsFile extends TensorStore {
  readonly format: 'safetensors';
  /** `__metadata__` of the header (of the first shard). */
  readonly metadata: ReadonlyMap<string, string>;
}

const lengthBytes = 8;
/** The limit of the reference implementation. */
const maxHeaderBytes = 100_000_000;

/**
 * @param path a .safetensors file, or a folder with model.safetensors.index.json or model.safetensors
 * @throws ConfigError naming the file and what is wrong with it
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  const paths = await filesOf(path);
  const files: RangedFile[] = [];
  try {
    const tensors = new Map<string, StoredTensor>();
    let metadata: ReadonlyMap<string, string> | undefined;
    for (const filePath of paths) {
      const file = await RangedFile.open(filePath);
      files.push(file);
      const header = await readHeader(file);
      metadata ??= header.metadata;
      for (const tensor of header.tensors) {
        const other = tensors.get(tensor.name);
        if (other !== undefined)
          throw new ConfigError(`${file.name}: tensor '${tensor.name}' is also in ${other.file.name}; remove one`);
        tensors.set(tensor.name, { ...tensor, file });
      }
    }
    return {
      format: 'safetensors',
      tensors,
      metadata: metadata ?? new Map<string, string>(),
      fileBytes: files.reduce((sum, file) => sum + file.bytes, 0),
      [Symbol.asyncDispose]: () => closeAll(files),
    };
  } catch (error) {
    await closeAll(files);
    throw error;
  }
}

/**
 * Writes one file. Tensors are ordered by type (widest first, so that all stay aligned), then name.
 * @throws ConfigError when the file cannot be written
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorSource[],
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const { ordered, header } = layoutTensors(tensors, metadata);
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.part`);
  try {
    await writeTensors(temporary, formatHeader(header), ordered);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    if (error instanceof Error && 'code' in error)
      throw new ConfigError(`cannot write ${path}: ${messageOf(error)}`, { cause: error });
    throw error;
  }
}

async function writeTensors(path: string, header: Uint8Array, tensors: readonly PlannedTensor[]): Promise<void> {
  await using handle = await open(path, 'w');
  await handle.writeFile(header);
  for (const tensor of tensors) {
    let written = 0;
    for await (const piece of piecesOf(await tensor.read())) {
      await handle.writeFile(piece);
      written += piece.byteLength;
    }
    invariant(
      written === tensor.bytes,
      `writeSafetensors: ${tensor.name} gave ${written} bytes, its shape needs ${tensor.bytes}`,
    );
  }
  await handle.sync();
}

function piecesOf(content: Uint8Array | AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> | Iterable<Uint8Array> {
  return content instanceof Uint8Array ? [content] : content;
}

async function readHeader(file: RangedFile): Promise<TensorHeader> {
  const prefix = await file.read(0, lengthBytes, 'the header length');
  const announced = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  if (announced > BigInt(Math.min(maxHeaderBytes, file.bytes - lengthBytes)))
    throw new ConfigError(
      `${file.name}: header of ${announced} bytes announced in a file of ${file.bytes}; not a safetensors file, or damaged`,
    );
  const length = Number(announced);
  const text = await file.read(lengthBytes, length, 'the header');
  const header = parseHeader(text, file.name, lengthBytes + length, file.bytes);
  await checkRest(file, header.dataEnd);
  return header;
}

/**
 * Some writers fill the file up to a multiple of 8 with zeros. Anything else behind the tensors is refused, as the
 * reference implementation does: the offsets of such a file cannot be trusted.
 */
async function checkRest(file: RangedFile, dataEnd: number): Promise<void> {
  const restBytes = file.bytes - dataEnd;
  if (restBytes < 8 && (await file.read(dataEnd, restBytes, 'the padding')).every((byte) => byte === 0)) return;
  throw new ConfigError(
    `${file.name}: tensors end at byte ${dataEnd}, but the file has ${file.bytes}; the file is damaged`,
  );
}

const indexSchema = z.object({ weight_map: z.record(z.string(), z.string()) });

async function filesOf(path: string): Promise<string[]> {
  // A path that is not there is reported when it is opened.
  const isFolder = await stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
  if (!isFolder) return [path];
  const indexName = 'model.safetensors.index.json';
  let text: string;
  try {
    text = await readFile(join(path, indexName), 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return [join(path, 'model.safetensors')];
    throw new ConfigError(`model: cannot read ${indexName} in ${path}: ${messageOf(error)}`, { cause: error });
  }
  const names = new Set(Object.values(parseIndex(text, indexName).weight_map));
  if (names.size === 0) throw new ConfigError(`${indexName}: weight_map is empty`);
  for (const name of names)
    if (name !== basename(name) || name === '' || name === '..')
      throw new ConfigError(`${indexName}: weight_map names '${name}', expected a file of the same folder`);
  return [...names].sort().map((name) => join(path, name));
}

function parseIndex(text: string, indexName: string): z.infer<typeof indexSchema> {
  try {
    return indexSchema.parse(JSON.parse(text));
  } catch (cause) {
    throw new ConfigError(`${indexName}: expected {"weight_map": {tensor: file}}: ${messageOf(cause)}`, { cause });
  }
}

async function closeAll(files: readonly RangedFile[]): Promise<void> {
  for (const file of files) await file[Symbol.asyncDispose]();
}
