/** Messages of earlier chats for the Up key, in the cache folder, readable by their owner alone. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { cacheFolder } from '../fetch.ts';
import { maxHistory } from './line-editor.ts';

export function historyFile(env: NodeJS.ProcessEnv): string {
  return join(cacheFolder(env), 'chat-history');
}

/** @returns latest first; empty where there is none or it cannot be read: a chat needs no past */
export async function readHistory(file: string): Promise<string[]> {
  const text = await readFile(file, 'utf8').catch(() => '');
  return text
    .split('\n')
    .filter((line) => line !== '')
    .reverse();
}

/** @param lines oldest first  @param log told when it cannot be written */
export async function writeHistory(file: string, lines: readonly string[], log: (line: string) => void): Promise<void> {
  const kept = lines.filter((line, i) => line !== lines[i + 1]).slice(-maxHistory);
  try {
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, kept.map((line) => `${line}\n`).join(''), { mode: 0o600 });
  } catch (error) {
    log(`history: not kept (${error instanceof Error ? error.message : String(error)})`);
  }
}
