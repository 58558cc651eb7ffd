/**
 * The JSON header of a safetensors file: parse and check, lay out and format. No file is read here. Rules are those of
 * the reference implementation: tensors cover the data without holes or overlaps, names are unique, sizes match shapes.
 */
import { z } from 'zod';
import { ConfigError, invariant, messageOf } from '../config/errors.ts';
import { repeatedKey } from './json-keys.ts';
import type { StoredTensor } from './tensor-store.ts';
import { announcePacked, storedForm, unpacked } from './packed-tensors.ts';
import type { WeightType } from './checkpoint.ts';
import { layoutOf } from './tensor-types.ts';

export interface TensorHeader {
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: readonly Omit<StoredTensor, 'file'>[];
  /** Position behind the last tensor; what follows belongs to no tensor. */
  readonly dataEnd: number;
}

/**
 * A tensor to be written. `read` is called once, in the order of the file; its result may be dropped afterwards, so a
 * large tensor is read in pieces. Blocks of quantised types are written as packed-tensors.ts says.
 */
export interface TensorSource {
  readonly name: string;
  readonly type: WeightType | 'i32';
  readonly shape: readonly number[];
  readonly read: () => Promise<Uint8Array> | Uint8Array | AsyncIterable<Uint8Array>;
}

const metadataKey = '__metadata__';
const size = z.number().int().nonnegative();
const entrySchema = z.strictObject({
  dtype: z.string(),
  shape: z.array(size).max(8),
  data_offsets: z.tuple([size, size]),
});

/**
 * @param bytes the header's JSON  @param dataStart position of the data in the file
 * @throws ConfigError naming file, tensor, expected and got
 */
export function parseHeader(bytes: Uint8Array, fileName: string, dataStart: number, fileBytes: number): TensorHeader {
  const fields = parseFields(bytes, fileName);
  let metadata = new Map<string, string>();
  const tensors: Omit<StoredTensor, 'file'>[] = [];
  for (const [name, value] of fields) {
    if (name === metadataKey) metadata = parseMetadata(value, fileName);
    else tensors.push(parseTensor(name, value, fileName, dataStart));
  }
  const dataEnd = checkCoverage(tensors, fileName, dataStart, fileBytes);
  return { metadata, tensors: unpacked(tensors, metadata, fileName), dataEnd };
}

export interface PlannedTensor extends TensorSource {
  readonly bytes: number;
}

/** Orders tensors for writing and describes them. @throws InvariantError when a name occurs twice */
export function layoutTensors(
  tensors: readonly TensorSource[],
  metadata: Readonly<Record<string, string>>,
): { ordered: PlannedTensor[]; header: Record<string, unknown> } {
  const width = (type: string): number => layoutOf(type)?.blockBytes ?? 0;
  const planned = tensors
    .map((tensor) => {
      const stored = storedForm(tensor);
      return { tensor, stored, bytes: stored.shape.reduce((a, b) => a * b, width(stored.type)) };
    })
    .sort((a, b) => width(b.stored.type) - width(a.stored.type) || (a.tensor.name < b.tensor.name ? -1 : 1));
  const header: Record<string, unknown> = {};
  const entries = Object.entries({ ...metadata, ...announcePacked(tensors) });
  if (entries.length > 0) header[metadataKey] = Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
  let offset = 0;
  for (const { tensor, stored, bytes } of planned) {
    invariant(!Object.hasOwn(header, tensor.name), `writeSafetensors: tensor ${tensor.name} occurs twice`);
    header[tensor.name] = {
      dtype: stored.type.toUpperCase(),
      shape: stored.shape,
      data_offsets: [offset, offset + bytes],
    };
    offset += bytes;
  }
  return { ordered: planned.map(({ tensor, bytes }) => ({ ...tensor, bytes })), header };
}

/** Length field and JSON, padded with spaces so that the data starts at a multiple of 8. */
export function formatHeader(header: Readonly<Record<string, unknown>>): Uint8Array {
  const json = new TextEncoder().encode(JSON.stringify(header));
  const length = Math.ceil(json.byteLength / 8) * 8;
  const bytes = new Uint8Array(8 + length).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  bytes.set(json, 8);
  return bytes;
}

function parseFields(bytes: Uint8Array, fileName: string): [string, unknown][] {
  let parsed: unknown;
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    parsed = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(
      `${fileName}: the header is not JSON: ${messageOf(cause)}; not a safetensors file, or damaged`,
      {
        cause,
      },
    );
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed))
    throw new ConfigError(`${fileName}: the header is not a JSON object`);
  const repeated = repeatedKey(text);
  if (repeated !== undefined) throw new ConfigError(`${fileName}: the header names '${repeated}' twice`);
  return Object.entries(parsed);
}

function parseMetadata(value: unknown, fileName: string): Map<string, string> {
  const parsed = z.record(z.string(), z.string()).safeParse(value);
  if (!parsed.success) throw new ConfigError(`${fileName}: ${metadataKey} must map strings to strings`);
  return new Map(Object.entries(parsed.data));
}

function parseTensor(name: string, value: unknown, fileName: string, dataStart: number): Omit<StoredTensor, 'file'> {
  const entry = entrySchema.safeParse(value);
  if (!entry.success)
    throw new ConfigError(
      `${fileName}: tensor '${name}': expected {dtype, shape, data_offsets} of whole numbers: ${z.prettifyError(entry.error)}`,
    );
  const { dtype, shape, data_offsets: offsets } = entry.data;
  const [begin, end] = offsets;
  const type = dtype.toLowerCase();
  const layout = layoutOf(type);
  // ggml's block types have no safetensors name; a file that claims one is not what it says.
  if (layout === undefined || layout.blockSize !== 1)
    throw new ConfigError(`${fileName}: tensor '${name}' has the unknown type ${dtype}`);
  const bytes = shape.reduce((product, dimension) => product * dimension, layout.blockBytes);
  if (!Number.isSafeInteger(bytes) || bytes !== end - begin)
    throw new ConfigError(
      `${fileName}: tensor '${name}' ${dtype} [${shape.join(', ')}] needs ${bytes} bytes, its offsets ${begin}..${end} give ${end - begin}`,
    );
  return { name, type, shape, offset: dataStart + begin, bytes };
}

/** @returns the position behind the last tensor */
function checkCoverage(
  tensors: readonly Omit<StoredTensor, 'file'>[],
  fileName: string,
  dataStart: number,
  fileBytes: number,
): number {
  const byOffset = [...tensors].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes);
  let end = dataStart;
  for (const tensor of byOffset) {
    if (tensor.offset !== end)
      throw new ConfigError(
        `${fileName}: tensor '${tensor.name}' starts at byte ${tensor.offset}, expected ${end}: tensors must neither overlap nor leave holes`,
      );
    end += tensor.bytes;
  }
  if (end > fileBytes)
    throw new ConfigError(
      `${fileName}: tensors end at byte ${end}, but the file has ${fileBytes}; is the download complete?`,
    );
  return end;
}
