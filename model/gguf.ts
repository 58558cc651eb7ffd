/**
 * Reads GGUF files, versions 2 and 3, little endian: metadata and tensor table; the weights stay on disk. The file is
 * treated as hostile: every count, length, offset and type is checked against the file's size before anything is
 * allocated. Refuses big-endian files, version 1, duplicate names, overlapping tensors and files that end early.
 * Read next: gguf-cursor.ts (the bytes), tensor-types.ts (block sizes), stored-checkpoint.ts (weights).
 */
import { ConfigError } from '../config/errors.ts';
import { GgufCursor } from './gguf-cursor.ts';
import { RangedFile } from './ranged-file.ts';
import type { StoredTensor, TensorStore } from './tensor-store.ts';
import { ggufTypeNames, layoutOf } from './tensor-types.ts';

/** A metadata value; 64-bit integers beyond 2^53 are bigint. */
export type GgufValue = number | bigint | boolean | string | readonly GgufValue[];

export type GgufMetadata = ReadonlyMap<string, GgufValue>;

export interface GgufFile extends TensorStore {
  readonly format: 'gguf';
  readonly version: number;
  readonly metadata: GgufMetadata;
}

const magic = 0x46554747; // 'GGUF'
const defaultAlignment = 32;
const maxNesting = 4;
const maxKeyBytes = 65535;
const maxNameBytes = 1024;
const maxDimensions = 4;
/** Longest array of metadata values; vocabularies stay below a million. */
const maxArrayLength = 1 << 24;

/** Least bytes of a value of each metadata type: what a count is checked against. */
const minValueBytes = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8] as const;
const typeString = 8;
const typeArray = 9;

/**
 * @param isWanted keys whose values are kept; others are checked and passed over. A vocabulary takes 30 MB as strings
 * @throws ConfigError naming the file and what is wrong with it
 */
export async function openGguf(path: string, isWanted: (key: string) => boolean = () => true): Promise<GgufFile> {
  const file = await RangedFile.open(path);
  try {
    const cursor = new GgufCursor(file);
    const { version, numTensors, numValues } = await readPreamble(cursor);
    const metadata = await readMetadata(cursor, numValues, isWanted);
    const alignment = alignmentOf(metadata, file.name);
    const entries = await readTensorTable(cursor, numTensors);
    const dataStart = Math.ceil(cursor.position / alignment) * alignment;
    const tensors = placeTensors(entries, file, dataStart, alignment);
    return {
      format: 'gguf',
      version,
      metadata,
      tensors,
      fileBytes: file.bytes,
      [Symbol.asyncDispose]: () => file[Symbol.asyncDispose](),
    };
  } catch (error) {
    await file[Symbol.asyncDispose]();
    throw error;
  }
}

async function readPreamble(cursor: GgufCursor): Promise<{ version: number; numTensors: number; numValues: number }> {
  const found = await cursor.u32('the magic number');
  if (found !== magic)
    throw cursor.error(`not a GGUF file: it starts with 0x${found.toString(16)}, expected 0x${magic.toString(16)}`);
  const version = await cursor.u32('the version');
  if (version === 0x02000000 || version === 0x03000000)
    throw cursor.error('big-endian GGUF; only little endian is read, convert it again on a little-endian machine');
  if (version !== 2 && version !== 3) throw cursor.error(`GGUF version ${version}; versions 2 and 3 are read`);
  const numTensors = await cursor.count('the number of tensors');
  const numValues = await cursor.count('the number of metadata values');
  cursor.requireRemaining(numValues, 13, 'metadata values');
  cursor.requireRemaining(numTensors, 24, 'tensors');
  return { version, numTensors, numValues };
}

async function readMetadata(
  cursor: GgufCursor,
  count: number,
  isWanted: (key: string) => boolean,
): Promise<GgufMetadata> {
  const metadata = new Map<string, GgufValue>();
  const keys = new Set<string>();
  for (let i = 0; i < count; i++) {
    const key = await cursor.string(`metadata key ${i}`, maxKeyBytes);
    if (keys.has(key)) throw cursor.error(`metadata key '${key}' occurs twice`);
    keys.add(key);
    const type = await cursor.u32(`the type of '${key}'`);
    if (isWanted(key)) metadata.set(key, await readValue(cursor, type, key, 0));
    else await skipValue(cursor, type, key, 0);
  }
  return metadata;
}

async function readValue(cursor: GgufCursor, type: number, key: string, depth: number): Promise<GgufValue> {
  switch (type) {
    case 0:
      return cursor.u8(key);
    case 1:
      return cursor.i8(key);
    case 2:
      return cursor.u16(key);
    case 3:
      return cursor.i16(key);
    case 4:
      return cursor.u32(key);
    case 5:
      return cursor.i32(key);
    case 6:
      return cursor.f32(key);
    case 7:
      return (await cursor.u8(key)) !== 0;
    case typeString:
      return cursor.string(key, cursor.remaining);
    case typeArray:
      return readArray(cursor, key, depth);
    case 10:
      return cursor.u64(key);
    case 11:
      return cursor.i64(key);
    case 12:
      return cursor.f64(key);
    default:
      throw cursor.error(`metadata '${key}' has type ${type}; types 0 to 12 are known`);
  }
}

async function readArray(cursor: GgufCursor, key: string, depth: number): Promise<GgufValue[]> {
  const { type, length } = await readArrayHeader(cursor, key, depth);
  const values: GgufValue[] = [];
  for (let i = 0; i < length; i++) values.push(await readValue(cursor, type, key, depth + 1));
  return values;
}

/** The same checks as in reading it. */
async function skipValue(cursor: GgufCursor, type: number, key: string, depth: number): Promise<void> {
  if (type === typeString) return cursor.skip(await cursor.count(`the length of ${key}`), key);
  if (type !== typeArray) {
    const bytes = minValueBytes[type];
    if (bytes === undefined) throw cursor.error(`metadata '${key}' has type ${type}; types 0 to 12 are known`);
    return cursor.skip(bytes, key);
  }
  const header = await readArrayHeader(cursor, key, depth);
  if (header.type === typeString || header.type === typeArray)
    for (let i = 0; i < header.length; i++) await skipValue(cursor, header.type, key, depth + 1);
  else cursor.skip(header.length * (minValueBytes[header.type] ?? 0), key);
}

async function readArrayHeader(
  cursor: GgufCursor,
  key: string,
  depth: number,
): Promise<{ readonly type: number; readonly length: number }> {
  if (depth >= maxNesting) throw cursor.error(`metadata '${key}' nests arrays deeper than ${maxNesting}`);
  const type = await cursor.u32(key);
  const length = await cursor.count(`the length of '${key}'`);
  const leastBytes = minValueBytes[type];
  if (leastBytes === undefined)
    throw cursor.error(`metadata '${key}' is an array of type ${type}; types 0 to 12 are known`);
  if (length > maxArrayLength)
    throw cursor.error(`metadata '${key}' has ${length} elements, at most ${maxArrayLength} are read`);
  cursor.requireRemaining(length, leastBytes, `elements of '${key}'`);
  return { type, length };
}

function alignmentOf(metadata: GgufMetadata, fileName: string): number {
  const alignment = metadata.get('general.alignment') ?? defaultAlignment;
  const valid = typeof alignment === 'number' && Number.isInteger(alignment) && alignment >= 1 && alignment <= 1 << 30;
  // A power of two has one bit set.
  if (!valid || (alignment & (alignment - 1)) !== 0)
    throw new ConfigError(`${fileName}: general.alignment is ${String(alignment)}, expected a power of two`);
  return alignment;
}

interface TableEntry {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly number[];
  readonly bytes: number;
  /** Counted from the start of the data. */
  readonly offset: number;
}

async function readTensorTable(cursor: GgufCursor, count: number): Promise<TableEntry[]> {
  const entries: TableEntry[] = [];
  const names = new Set<string>();
  for (let i = 0; i < count; i++) {
    const entry = await readTableEntry(cursor, i);
    if (names.has(entry.name)) throw cursor.error(`tensor '${entry.name}' occurs twice`);
    names.add(entry.name);
    entries.push(entry);
  }
  return entries;
}

async function readTableEntry(cursor: GgufCursor, index: number): Promise<TableEntry> {
  const name = await cursor.string(`the name of tensor ${index}`, maxNameBytes);
  const what = `tensor '${name}'`;
  const numDimensions = await cursor.u32(what);
  if (numDimensions > maxDimensions)
    throw cursor.error(`${what} has ${numDimensions} dimensions, at most ${maxDimensions} are possible`);
  const dimensions: number[] = []; // innermost first
  for (let i = 0; i < numDimensions; i++) dimensions.push(await cursor.count(`dimension ${i} of ${what}`));
  const typeNumber = await cursor.u32(what);
  const type = ggufTypeNames.get(typeNumber);
  const layout = type === undefined ? undefined : layoutOf(type);
  if (type === undefined || layout === undefined) throw cursor.error(`${what} has the unknown type ${typeNumber}`);
  const cols = dimensions[0] ?? 1;
  if (cols % layout.blockSize !== 0)
    throw cursor.error(`${what} has rows of ${cols} values, expected a multiple of ${layout.blockSize} for ${type}`);
  const elements = dimensions.reduce((product, dimension) => product * dimension, 1);
  const bytes = (elements / layout.blockSize) * layout.blockBytes;
  if (!Number.isSafeInteger(elements) || !Number.isSafeInteger(bytes))
    throw cursor.error(`${what} is too large: [${dimensions.toReversed().join(', ')}]`);
  const offset = await cursor.count(`the offset of ${what}`);
  return { name, type, shape: dimensions.toReversed(), bytes, offset };
}

/** Positions in the file, checked against its length and against each other. */
function placeTensors(
  entries: readonly TableEntry[],
  file: RangedFile,
  dataStart: number,
  alignment: number,
): ReadonlyMap<string, StoredTensor> {
  const tensors = new Map<string, StoredTensor>();
  for (const { name, type, shape, bytes, offset } of entries) {
    if (offset % alignment !== 0)
      throw new ConfigError(`${file.name}: tensor '${name}' starts at ${offset}, expected a multiple of ${alignment}`);
    if (dataStart + offset + bytes > file.bytes)
      throw new ConfigError(
        `${file.name}: tensor '${name}' ends at byte ${dataStart + offset + bytes}, but the file has ${file.bytes}; is the download complete?`,
      );
    tensors.set(name, { name, type, shape, file, offset: dataStart + offset, bytes });
  }
  const byOffset = [...tensors.values()].filter(({ bytes }) => bytes > 0).sort((a, b) => a.offset - b.offset);
  for (const [i, tensor] of byOffset.entries()) {
    const next = byOffset[i + 1];
    if (next !== undefined && tensor.offset + tensor.bytes > next.offset)
      throw new ConfigError(`${file.name}: tensors '${tensor.name}' and '${next.name}' overlap; the file is damaged`);
  }
  return tensors;
}
