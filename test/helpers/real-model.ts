/** Where the real model of the model tests lies; they are skipped without it. */
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** TPLA_MODEL, else what `tpla fetch` brought; undefined when neither exists. */
export function realModelPath(): string | undefined {
  const named = process.env['TPLA_MODEL'];
  if (named !== undefined && named !== '') return named;
  const cache = process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache');
  const fetched = join(cache, 'tpla', 'SmolLM2-135M-Instruct.Q4_1.gguf');
  return existsSync(fetched) ? fetched : undefined;
}
