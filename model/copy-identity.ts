/**
 * Whether two machines hold the same copy of a model: the checkpoint's identity (sizes and tensor table) and a sample of
 * the bytes of every weight file, because two trainings of one architecture have the same table. Reads at most 256 KiB
 * of a file; a file that is damaged between the samples passes. Read next: checkpoint.ts.
 */
import { createHash } from 'node:crypto';
import { open, readdir, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { Checkpoint } from './checkpoint.ts';

const sampleBytes = 4096;
const samplesPerFile = 64;

/** Hex. @throws the system's error when a file cannot be read */
export async function copyIdentity({ path, identity }: Pick<Checkpoint, 'path' | 'identity'>): Promise<string> {
  const hash = createHash('sha256').update(identity);
  for (const file of await weightFiles(path)) {
    const handle = await open(file, 'r');
    try {
      const { size } = await handle.stat();
      hash.update(`${basename(file)} ${size}\n`);
      const block = Buffer.alloc(sampleBytes);
      for (let i = 0; i < samplesPerFile; i++) {
        // Evenly spaced, the first at the beginning, the last at the end.
        const at = Math.max(0, Math.floor((i * (size - sampleBytes)) / (samplesPerFile - 1)));
        const { bytesRead } = await handle.read(block, 0, sampleBytes, at);
        hash.update(block.subarray(0, bytesRead));
      }
    } finally {
      await handle.close();
    }
  }
  return hash.digest('hex');
}

/** A folder's safetensors files in the order of their names, rotations included; a file alone is itself. */
async function weightFiles(path: string): Promise<string[]> {
  const folder = (await stat(path)).isDirectory() ? path : path.endsWith('.safetensors') ? dirname(path) : null;
  if (folder === null) return [path];
  const names = (await readdir(folder)).filter((name) => name.endsWith('.safetensors')).sort();
  return names.map((name) => join(folder, name));
}
