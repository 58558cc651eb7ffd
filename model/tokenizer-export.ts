/**
 * Writes the tokenizer of any source (Hugging Face folder, GGUF, SentencePiece) into a folder as the Hugging Face files
 * that describe it, so that a converted model carries its own and other programs can read it.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ConfigError, messageOf } from '../config/errors.ts';
import { loadTokenizerFiles } from './tokenizer-files.ts';

/**
 * Writes tokenizer.json, tokenizer_config.json (chat template included) and generation_config.json. Loading the folder
 * gives the same tokenizer.
 * @param source as for loadTokenizer  @param folder exists
 * @throws ConfigError when the source has no tokenizer or the folder cannot be written
 */
export async function exportTokenizer(source: string, folder: string): Promise<void> {
  const { tokenizer, config, bosId, eosIds, chatTemplate } = await loadTokenizerFiles(source);
  const template = chatTemplate === undefined ? {} : { chat_template: chatTemplate };
  const bos = bosId === undefined ? {} : { bos_token_id: bosId };
  await writeJson(join(folder, 'tokenizer.json'), tokenizer);
  await writeJson(join(folder, 'tokenizer_config.json'), { ...config, ...template });
  await writeJson(join(folder, 'generation_config.json'), { ...bos, eos_token_id: eosIds });
}

async function writeJson(path: string, value: unknown): Promise<void> {
  try {
    await writeFile(path, `${JSON.stringify(value, null, 1)}\n`);
  } catch (cause) {
    throw new ConfigError(`tokenizer: cannot write ${path}: ${messageOf(cause)}`, { cause });
  }
}
