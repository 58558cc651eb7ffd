/**
 * Converted layers on disk until the checkpoint is written, one file each, so that a conversion holds one layer in
 * memory whatever the model's depth. Read next: write-converted.ts.
 */
import { open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { invariant } from '../../config/errors.ts';
import type { TensorSource } from '../safetensors.ts';
import type { EncodedLayer } from './write-converted.ts';

export class LayerSpill {
  readonly #folder: string;
  #files = 0;

  /** @param folder an existing one, removed by its maker together with what is written here */
  constructor(folder: string) {
    this.#folder = folder;
  }

  /** @returns the same layer, whose tensors are read from a file */
  async store(layer: EncodedLayer): Promise<EncodedLayer> {
    const path = join(this.#folder, `layer-${this.#files++}`);
    const pieces: Uint8Array[] = [];
    let end = 0;
    const move = async (tensors: readonly TensorSource[]): Promise<TensorSource[]> => {
      const moved: TensorSource[] = [];
      for (const tensor of tensors) {
        const bytes = await tensor.read();
        invariant(bytes instanceof Uint8Array, `${tensor.name} is not in memory`);
        const start = end;
        pieces.push(bytes);
        end += bytes.byteLength;
        moved.push({ ...tensor, read: () => readPart(path, start, bytes.byteLength) });
      }
      return moved;
    };
    const stored = { ...layer, tensors: await move(layer.tensors), rotation: await move(layer.rotation) };
    await writeFile(path, pieces);
    return stored;
  }
}

async function readPart(path: string, start: number, length: number): Promise<Uint8Array> {
  await using handle = await open(path);
  const bytes = new Uint8Array(length);
  const { bytesRead } = await handle.read(bytes, 0, length, start);
  invariant(bytesRead === length, `${path}: ${bytesRead} bytes at ${start}, expected ${length}`);
  return bytes;
}
