/** Files that hold tensors and do not say of which model: a safetensors file alone, a GGUF without a model's metadata. */
import { stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { openGguf } from './gguf.ts';
import { openSafetensors } from './safetensors.ts';
import type { TensorStore } from './tensor-store.ts';

/**
 * The tensors of such a file; undefined for anything else, also for what does not exist.
 * @throws ConfigError when the file is damaged
 */
export async function openBareFile(path: string): Promise<TensorStore | undefined> {
  if (!(await isFile(path))) return undefined;
  if (path.endsWith('.safetensors'))
    return (await isFile(join(dirname(path), 'config.json'))) ? undefined : openSafetensors(path);
  if (!path.endsWith('.gguf')) return undefined;
  const store = await openGguf(path, (key) => !key.startsWith('tokenizer.'));
  const architecture = store.metadata.get('general.architecture');
  const describesModel = [...store.metadata.keys()].some((key) => key.startsWith(`${String(architecture)}.`));
  if (!describesModel) return store;
  await store[Symbol.asyncDispose]();
  return undefined;
}

async function isFile(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isFile(),
    () => false,
  );
}
