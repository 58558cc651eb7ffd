/** Paths and small tools shared by the tests of model/. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll } from 'vitest';
import { openSafetensors } from '../../../model/safetensors.ts';

export const golden = join(import.meta.dirname, '..', '..', 'golden');

/** A folder that exists while the tests of a file run. */
export function temporaryFolder(): () => string {
  let folder = '';
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'tpla-model-'));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));
  return () => folder;
}

/** Every tensor of a safetensors file as float32. */
export async function floatsOf(path: string): Promise<Map<string, Float32Array>> {
  await using file = await openSafetensors(path);
  const floats = new Map<string, Float32Array>();
  for (const [name, tensor] of file.tensors) {
    const bytes = await tensor.file.read(tensor.offset, tensor.bytes, name);
    floats.set(name, new Float32Array(bytes.buffer));
  }
  return floats;
}

export interface ExpectedOutcome {
  readonly file: string;
  readonly expect: 'ok' | 'refuse' | 'refuse-or-exact';
  readonly reason: string;
}
