/** Byte-level vocabularies in vocab.json with merges.txt and in tiktoken files, and how the cutting rules cut numbers. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { byteCharacters } from '../../../model/byte-level.ts';
import { loadTokenizer } from '../../../model/tokenizer.ts';
import { temporaryFolder } from './fixtures.ts';
import { writeGguf } from './write-gguf.ts';

const folder = temporaryFolder();

/** The 256 bytes, then these, in the order in which they are merged. */
const words = ['He', 'll', 'Hell', 'Hello', ' w', 'or', 'ld', ' wor', ' world', '12', '123', '1234', 'é'];
const latin = (text: string): Buffer => Buffer.from(text, 'utf8');
const written = (text: string): string => Array.from(latin(text), (byte) => byteCharacters[byte]!).join('');
const vocab: Record<string, number> = Object.fromEntries(
  [...byteCharacters, ...words.map(written)].map((token, id) => [token, id]),
);
const merges = [
  'H e',
  'l l',
  'He ll',
  'Hell o',
  'Ġ w',
  'o r',
  'l d',
  'Ġw or',
  'Ġwor ld',
  '1 2',
  '12 3',
  '123 4',
  'Ã ©',
];
const idOf = (text: string): number => vocab[written(text)]!;

const special = { content: '<|end|>', special: true, lstrip: false, rstrip: false, normalized: false };
const added = { added_tokens_decoder: { '400': special }, eos_token: '<|end|>' };
const expected = [idOf('Hello'), idOf(' world'), idOf('é'), 400, ...'12'.split('').map(idOf)];
const text = 'Hello worldé<|end|>12';

async function newFolder(name: string, config: Record<string, unknown> | undefined): Promise<string> {
  const path = join(folder(), name);
  await mkdir(path);
  if (config !== undefined) await writeFile(join(path, 'tokenizer_config.json'), JSON.stringify(config));
  return path;
}

/** Ranks are ids; bytes come first. */
function tiktokenLines(): string {
  const bytes = Array.from({ length: 256 }, (_, byte) => Buffer.from([byte]));
  return [...bytes, ...words.map(latin)].map((token, rank) => `${token.toString('base64')} ${rank}\n`).join('');
}

describe('vocab.json and merges.txt', () => {
  it('are cut as the tokenizer class says', async () => {
    const path = await newFolder('pair', { ...added, tokenizer_class: 'Qwen2Tokenizer' });
    await writeFile(join(path, 'vocab.json'), JSON.stringify(vocab));
    await writeFile(join(path, 'merges.txt'), `#version: 0.2\n${merges.join('\n')}\n`);
    const tokenizer = await loadTokenizer(path);
    expect(tokenizer.encode(text)).toEqual(expected);
    expect(tokenizer.decode(expected, { skipSpecial: false })).toBe(text);
    expect(tokenizer.eosIds).toEqual([400]);
  });

  it('refuse an unknown class, and none', async () => {
    for (const [name, config, message] of [
      ['unknown', { tokenizer_class: 'ProphetTokenizer' }, /tokenizer_class 'ProphetTokenizer' is not supported/],
      [
        'silent',
        {},
        /how the text is cut is not known without a tokenizer_config\.json that names its tokenizer_class/,
      ],
    ] as const) {
      const path = await newFolder(name, config);
      await writeFile(join(path, 'vocab.json'), JSON.stringify(vocab));
      await writeFile(join(path, 'merges.txt'), merges.join('\n'));
      await expect(loadTokenizer(path)).rejects.toThrow(message);
    }
  });
});

describe('tiktoken files', () => {
  it('give the same tokens', async () => {
    const path = await newFolder('tiktoken', { ...added, tokenizer_class: 'Qwen2Tokenizer' });
    await writeFile(join(path, 'qwen.tiktoken'), tiktokenLines());
    const tokenizer = await loadTokenizer(path);
    expect(tokenizer.encode(text)).toEqual(expected);
    expect(tokenizer.decode(expected, { skipSpecial: true })).toBe('Hello worldé12');
  });

  it('are told from SentencePiece models of the same name; alone, they have no special tokens', async () => {
    const path = join(await newFolder('alone', undefined), 'tokenizer.model');
    await writeFile(path, tiktokenLines());
    const tokenizer = await loadTokenizer(path);
    expect(tokenizer.encode('Hello1234')).toEqual([idOf('Hello'), idOf('123'), idOf('4')]);
    expect(tokenizer.eosIds).toEqual([]);
  });

  it('cut for Kimi: digits by threes, a contraction with its word', async () => {
    const path = await newFolder('kimi', { tokenizer_class: 'TikTokenTokenizer' });
    await writeFile(join(path, 'tiktoken.model'), tiktokenLines());
    const tokenizer = await loadTokenizer(path);
    expect(tokenizer.encode('1234')).toEqual([idOf('123'), idOf('4')]);
    expect(tokenizer.encode('Hello world')).toEqual([idOf('Hello'), idOf(' world')]);
  });

  it('name the line that is wrong', async () => {
    const path = await newFolder('damaged', { tokenizer_class: 'TikTokenTokenizer' });
    await writeFile(join(path, 'tiktoken.model'), `${tiktokenLines()}SGVsbG8= many\n`);
    await expect(loadTokenizer(path)).rejects.toThrow(/tiktoken\.model:270: expected a token in base64 and its rank/);
  });
});

it.each([
  ['deepseek-llm', ['1234']],
  ['deepseek-coder', ['1', '2', '3', '4']],
  ['deepseek-v3', ['123', '4']],
  ['kimi-k2', ['123', '4']],
  ['qwen2', ['1', '2', '3', '4']],
  ['llama-bpe', ['123', '4']],
])('%s cuts 1234 into %j', async (pre, pieces) => {
  const path = join(folder(), `${pre}.gguf`);
  const metadata = {
    'tokenizer.ggml.model': { string: 'gpt2' },
    'tokenizer.ggml.pre': { string: pre },
    'tokenizer.ggml.tokens': { strings: [...byteCharacters, ...words.map(written)] },
    'tokenizer.ggml.merges': { strings: merges },
  };
  await writeGguf(path, metadata, []);
  expect((await loadTokenizer(path)).encode('1234')).toEqual(pieces.map(idOf));
});
