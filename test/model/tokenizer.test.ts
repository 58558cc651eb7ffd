/** The tokenizer and chat template inside the real GGUF, against transformers' (see test/golden/README.md). */
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { loadChatTemplate, type ChatMessage } from '../../model/chat-template.ts';
import { exportTokenizer } from '../../model/tokenizer-export.ts';
import { loadTokenizer, type Tokenizer } from '../../model/tokenizer.ts';
import { realModelPath } from '../helpers/real-model.ts';

interface TokenizerCase {
  readonly text: string;
  /** With a lone surrogate; encodes to the same ids. */
  readonly raw?: string;
  readonly ids: number[];
  readonly decoded: string;
  readonly decoded_skip_special: string;
}

interface ChatCase {
  readonly messages: ChatMessage[];
  readonly add_generation_prompt: boolean;
  readonly rendered: string;
  readonly ids: number[];
}

const path = realModelPath();

describe.skipIf(path === undefined)('SmolLM2-135M-Instruct', () => {
  const source = path ?? '';

  it('gives the ids and texts of transformers', async () => {
    const tokenizer = await loadTokenizer(source);
    expect([tokenizer.vocabSize, tokenizer.bosId, tokenizer.addsBos]).toEqual([49152, 1, false]);
    expect(tokenizer.eosIds).toContain(2);
    checkCases(tokenizer);
  });

  it('renders the chats of transformers', async () => {
    await checkChats(source, source);
  });

  it('does the same after an export', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'tpla-tokenizer-'));
    try {
      await exportTokenizer(source, folder);
      checkCases(await loadTokenizer(folder));
      await checkChats(folder, folder);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

function checkCases(tokenizer: Tokenizer): void {
  for (const { text, raw, ids, decoded, decoded_skip_special: skipped } of readLines<TokenizerCase>(
    'tokenizer.jsonl',
  )) {
    expect(tokenizer.encode(text)).toEqual(ids);
    if (raw !== undefined) expect(tokenizer.encode(raw)).toEqual(ids);
    expect(tokenizer.decode(ids, { skipSpecial: false })).toBe(decoded);
    expect(tokenizer.decode(ids, { skipSpecial: true })).toBe(skipped);
    const stream = tokenizer.newStream({ skipSpecial: false });
    expect([...ids.map((id) => stream.push(id)), stream.end()].join('')).toBe(decoded);
  }
}

async function checkChats(templatePath: string, tokenizerPath: string): Promise<void> {
  const template = await loadChatTemplate(templatePath);
  const tokenizer = await loadTokenizer(tokenizerPath);
  for (const { messages, add_generation_prompt: addGenerationPrompt, rendered, ids } of readLines<ChatCase>(
    'chat.jsonl',
  )) {
    expect(template?.render(messages, { addGenerationPrompt })).toBe(rendered);
    expect(tokenizer.encode(rendered)).toEqual(ids);
  }
}

function readLines<T>(name: string): T[] {
  const text = readFileSync(join(import.meta.dirname, '..', 'golden', 'smollm2', name), 'utf8');
  return text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as T);
}
