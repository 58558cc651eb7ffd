/**
 * Quantised tensors inside a safetensors file, which has no types for them: the bytes of the blocks as they are, as a U8
 * tensor [rows, bytes of a row], and in the header's `__metadata__` under `tpla_packed` a JSON object from tensor name to
 * ggml type. Other readers see bytes; ours sees the tensor. Nothing is read here. Read next: safetensors-header.ts.
 */
import { z } from 'zod';
import { ConfigError, invariant, messageOf } from '../config/errors.ts';
import type { StoredTensor } from './tensor-store.ts';
import { isWeightType, rowBytes, weightLayout } from './tensor-types.ts';

const metadataKey = 'tpla_packed';
const packedSchema = z.record(z.string(), z.string());

interface NamedTensor {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly number[];
}

/** How a tensor stands in the file. */
export function storedForm({ name, type, shape }: NamedTensor): { type: string; shape: readonly number[] } {
  if (!isWeightType(type) || weightLayout(type).blockSize === 1) return { type, shape };
  const cols = shape.at(-1) ?? 0;
  invariant(cols % weightLayout(type).blockSize === 0, `${name}: rows of ${cols} values are not whole ${type} blocks`);
  return { type: 'u8', shape: [...shape.slice(0, -1), rowBytes(type, cols)] };
}

/** The header's entry; none when nothing is packed. */
export function announcePacked(tensors: readonly NamedTensor[]): Record<string, string> {
  const packed = tensors.filter((tensor) => storedForm(tensor).type !== tensor.type);
  if (packed.length === 0) return {};
  const types = packed.map(({ name, type }) => [name, type] as const).sort(([a], [b]) => (a < b ? -1 : 1));
  return { [metadataKey]: JSON.stringify(Object.fromEntries(types)) };
}

/** The tensors with their own types and shapes. @throws ConfigError when the header's entry does not fit them */
export function unpacked(
  tensors: readonly Omit<StoredTensor, 'file'>[],
  metadata: ReadonlyMap<string, string>,
  fileName: string,
): Omit<StoredTensor, 'file'>[] {
  const text = metadata.get(metadataKey);
  if (text === undefined) return [...tensors];
  const types = new Map(Object.entries(parsePacked(text, fileName)));
  const out = tensors.map((tensor) => {
    const type = types.get(tensor.name);
    types.delete(tensor.name);
    if (type === undefined) return tensor;
    const width = tensor.shape.at(-1) ?? 0;
    if (!isWeightType(type) || tensor.type !== 'u8' || width % weightLayout(type).blockBytes !== 0)
      throw new ConfigError(
        `${fileName}: ${metadataKey} says that tensor '${tensor.name}' holds ${type}, but it is ${tensor.type} [${tensor.shape.join(', ')}], expected u8 rows of whole blocks`,
      );
    const { blockSize, blockBytes } = weightLayout(type);
    return { ...tensor, type, shape: [...tensor.shape.slice(0, -1), (width / blockBytes) * blockSize] };
  });
  const [absent] = types.keys();
  if (absent !== undefined) throw new ConfigError(`${fileName}: ${metadataKey} names '${absent}', which is no tensor`);
  return out;
}

function parsePacked(text: string, fileName: string): Record<string, string> {
  try {
    return packedSchema.parse(JSON.parse(text));
  } catch (cause) {
    throw new ConfigError(`${fileName}: ${metadataKey} must map tensor names to types: ${messageOf(cause)}`, { cause });
  }
}
