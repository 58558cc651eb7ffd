/**
 * Converted layers on disk until the checkpoint is written, so that a conversion holds one layer in memory whatever the
 * model's depth. Beside each file of weights lies one that says what it holds, so that a conversion that was cut off finds
 * its layers again. Read next: write-converted.ts.
 */
import { open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { invariant } from '../../config/errors.ts';
import type { TensorSource } from '../safetensors.ts';
import { matrixTypes } from './encode-floats.ts';
import type { EncodedLayer } from './write-converted.ts';

const tensorSchema = z.strictObject({
  name: z.string(),
  type: z.enum(matrixTypes),
  shape: z.array(z.int()),
  start: z.int(),
  bytes: z.int(),
});
const layerSchema = z.strictObject({
  ropeDim: z.int(),
  nopeDim: z.int(),
  latentDim: z.int(),
  frequencies: z.array(z.number()),
  hasBias: z.boolean(),
  replacesOutput: z.boolean(),
  tensors: z.array(tensorSchema),
  rotation: z.array(tensorSchema),
});
type StoredTensor = z.infer<typeof tensorSchema>;

export class LayerSpill {
  readonly #folder: string;

  /** @param folder an existing one, removed by its maker together with what is written here */
  constructor(folder: string) {
    this.#folder = folder;
  }

  /** @returns the same layer, whose tensors are read from a file */
  async store(name: string, layer: EncodedLayer): Promise<EncodedLayer> {
    const pieces: Uint8Array[] = [];
    let end = 0;
    const move = async (tensors: readonly TensorSource[]): Promise<StoredTensor[]> => {
      const moved: StoredTensor[] = [];
      for (const tensor of tensors) {
        const bytes = await tensor.read();
        invariant(bytes instanceof Uint8Array, `${tensor.name} is not in memory`);
        pieces.push(bytes);
        const { type } = tensorSchema.pick({ type: true }).parse({ type: tensor.type });
        moved.push({ name: tensor.name, type, shape: [...tensor.shape], start: end, bytes: bytes.byteLength });
        end += bytes.byteLength;
      }
      return moved;
    };
    const { frequencies, ...rest } = layer;
    const tensors = await move(layer.tensors);
    const stored = { ...rest, frequencies: [...frequencies], tensors, rotation: await move(layer.rotation) };
    await writeFile(this.#path(name), pieces);
    await writeFile(`${this.#path(name)}.json`, JSON.stringify(stored));
    return this.#opened(name, stored);
  }

  /** What was stored under this name before, perhaps by another process. @throws when it was not */
  async find(name: string): Promise<EncodedLayer> {
    const stored: unknown = JSON.parse(await readFile(`${this.#path(name)}.json`, 'utf8'));
    return this.#opened(name, layerSchema.parse(stored));
  }

  #opened(name: string, stored: z.infer<typeof layerSchema>): EncodedLayer {
    const path = this.#path(name);
    const opened = (tensors: readonly StoredTensor[]): TensorSource[] =>
      tensors.map(({ start, bytes, ...tensor }) => ({ ...tensor, read: () => readPart(path, start, bytes) }));
    return { ...stored, tensors: opened(stored.tensors), rotation: opened(stored.rotation) };
  }

  #path(name: string): string {
    return join(this.#folder, name);
  }
}

async function readPart(path: string, start: number, length: number): Promise<Uint8Array> {
  await using handle = await open(path);
  const bytes = new Uint8Array(length);
  const { bytesRead } = await handle.read(bytes, 0, length, start);
  invariant(bytesRead === length, `${path}: ${bytesRead} bytes at ${start}, expected ${length}`);
  return bytes;
}
