/** Reads the reference outputs beside the tiny checkpoints of test/golden/ (see its README). */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';

export const goldenFolder = fileURLToPath(new URL('../golden/', import.meta.url));

/** TPLA_GOLDEN names another folder of checkpoints with reference outputs, more than the repository has room for. */
const tinyFolder = process.env['TPLA_GOLDEN'] ?? join(goldenFolder, 'tiny');

export function tinyModel(name: string): string {
  return join(tinyFolder, name);
}

/** Names of all tiny checkpoints that have reference outputs. */
export function tinyCheckpoints(): string[] {
  return readdirSync(tinyFolder).filter((name) => existsSync(join(tinyModel(name), 'expected.safetensors')));
}

export interface GoldenOutputs {
  readonly inputIds: number[]; // [24]
  readonly logits: Float32Array; // [24, vocab]
  readonly greedyIds: number[]; // [16]
  readonly greedyLogits: Float32Array; // [16, vocab]
}

export function readGolden(name: string): GoldenOutputs {
  const tensors = readTensors(join(tinyModel(name), 'expected.safetensors'));
  return {
    inputIds: [...ints(tensors, 'input_ids')],
    logits: floats(tensors, 'logits'),
    greedyIds: [...ints(tensors, 'greedy_ids')],
    greedyLogits: floats(tensors, 'greedy_logits'),
  };
}

/** A reader of its own, so that a mistake in the product's reader cannot hide itself. */
export function readTensors(path: string): Map<string, { dtype: string; bytes: Buffer }> {
  const file = readFileSync(path);
  const headerBytes = Number(file.readBigUInt64LE(0));
  const header: Record<string, { dtype: string; data_offsets: [number, number] }> = JSON.parse(
    file.subarray(8, 8 + headerBytes).toString('utf8'),
  );
  return new Map(
    Object.entries(header)
      .filter(([name]) => name !== '__metadata__')
      .map(
        ([
          name,
          {
            dtype,
            data_offsets: [start, end],
          },
        ]) => [name, { dtype, bytes: file.subarray(8 + headerBytes + start, 8 + headerBytes + end) }],
      ),
  );
}

export function floats(tensors: ReturnType<typeof readTensors>, name: string): Float32Array {
  const { bytes } = tensors.get(name)!;
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
}

export function ints(tensors: ReturnType<typeof readTensors>, name: string): Int32Array {
  const { bytes } = tensors.get(name)!;
  return new Int32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
}
