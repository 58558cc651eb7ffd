import { readFileSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeAll, describe, expect, it } from 'vitest';
import { ConfigError } from '../../../config/errors.ts';
import { exportTokenizer } from '../../../model/tokenizer-export.ts';
import { loadTokenizer, type Tokenizer } from '../../../model/tokenizer.ts';
import { golden, temporaryFolder } from './fixtures.ts';
import { writeGguf, type Value } from './write-gguf.ts';

const folder = temporaryFolder();

/** GPT-2's 256 byte characters, in byte order. */
const byteCharacters = ((): string[] => {
  let next = 256;
  const printable = (byte: number): boolean =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
})();

const control = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']; // 0, 1, 2
const merges = ['h e', 'l l', 'he ll', 'hell o', 'Ġ w', '1 2', 'Ġ 1', 'Â ħ'];
const tokens = [...control, ...byteCharacters, ...merges.map((merge) => merge.replace(' ', '')), '<user>'];
const idOf = (text: string): number => tokens.indexOf(text);

function ggufTokenizer(changes: Record<string, Value> = {}): Record<string, Value> {
  return {
    'general.architecture': { string: 'llama' },
    'tokenizer.ggml.model': { string: 'gpt2' },
    'tokenizer.ggml.pre': { string: 'smollm' },
    'tokenizer.ggml.tokens': { strings: tokens },
    'tokenizer.ggml.token_type': { i32s: tokens.map((text, id) => (id < 3 ? 3 : text === '<user>' ? 4 : 1)) },
    'tokenizer.ggml.merges': { strings: merges },
    'tokenizer.ggml.bos_token_id': { u32: 1 },
    'tokenizer.ggml.eos_token_id': { u32: 2 },
    'tokenizer.chat_template': { string: '{{ messages[0].content }}' },
    ...changes,
  };
}

let path = '';
let tokenizer: Tokenizer;
beforeAll(async () => {
  path = join(folder(), 'model.gguf');
  await writeGguf(path, ggufTokenizer(), []);
  tokenizer = await loadTokenizer(path);
});

describe('byte-level BPE from GGUF', () => {
  it('knows its special ids', () => {
    expect(tokenizer.vocabSize).toBe(tokens.length);
    expect(tokenizer.bosId).toBe(1);
    // 0 by its text: GGUF names one end token only.
    expect(tokenizer.eosIds).toEqual([0, 2]);
    expect(tokenizer.addsBos).toBe(false);
  });

  it('merges, cuts single digits, adds nothing', () => {
    expect(tokenizer.encode('hello w')).toEqual([idOf('hello'), idOf('Ġw')]);
    // smollm cuts digits before anything else, so that neither '12' nor ' 1' can merge.
    expect(tokenizer.encode(' 12')).toEqual([idOf('Ġ'), idOf('1'), idOf('2')]);
    expect(tokenizer.encode('')).toEqual([]);
  });

  it('takes the text of special tokens for these', () => {
    expect(tokenizer.encode('<|im_start|>he<user><|im_end|>')).toEqual([1, idOf('he'), idOf('<user>'), 2]);
    expect(tokenizer.decode([1, idOf('he'), idOf('<user>'), 2], { skipSpecial: false })).toBe(
      '<|im_start|>he<user><|im_end|>',
    );
    // <user> is a token that users define, not a control token.
    expect(tokenizer.decode([1, idOf('he'), idOf('<user>'), 2], { skipSpecial: true })).toBe('he<user>');
  });

  it('counts a lone surrogate as U+FFFD', () => {
    expect(tokenizer.encode('a\ud800b')).toEqual(tokenizer.encode('a\ufffdb'));
    expect(tokenizer.encode('a\udc00')).toEqual(tokenizer.encode('a\ufffd'));
    expect(tokenizer.encode('😀')).toHaveLength(4);
  });

  it('takes U+0085 for a space and U+FEFF for none, as the Rust implementation does', () => {
    // 'he' + NEL is cut before NEL; the two bytes of NEL are one token by the last merge.
    expect(tokenizer.encode('he\u0085')).toEqual([idOf('he'), idOf('Âħ')]);
    const mark = tokenizer.encode('\ufeff');
    expect(tokenizer.decode(mark, { skipSpecial: true })).toBe('\ufeff');
  });

  it('gives nothing for ids without a token', () => {
    expect(tokenizer.decode([idOf('he'), tokens.length, 1 << 20], { skipSpecial: true })).toBe('he');
    expect(tokenizer.tokenText(1 << 20)).toBe('');
    expect(tokenizer.decode([], { skipSpecial: true })).toBe('');
  });

  it('shows single tokens', () => {
    expect(tokenizer.tokenText(idOf('Ġw'))).toBe(' w');
    expect(tokenizer.tokenText(2)).toBe('<|im_end|>');
    expect(tokenizer.tokenText(idOf(byteCharacters[0xe2]!))).toBe('\ufffd');
  });

  it('decodes what it encodes, at once and as a stream', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', maxLength: 40 }), (text) => {
        const ids = tokenizer.encode(text);
        expect(tokenizer.decode(ids, { skipSpecial: false })).toBe(text);
        const stream = tokenizer.newStream({ skipSpecial: false });
        const parts = ids.map((id) => stream.push(id));
        expect([...parts, stream.end()].join('')).toBe(text);
        for (const part of parts) expect(part).not.toContain('\ufffd');
      }),
      { seed: 3, numRuns: 300 },
    );
  });
});

describe('streams', () => {
  it('never give half a character', () => {
    const stream = tokenizer.newStream();
    const pushed = [...new TextEncoder().encode('é€😀x')].map((byte) => stream.push(idOf(byteCharacters[byte]!)));
    expect(pushed).toEqual(['', 'é', '', '', '€', '', '', '', '😀', 'x']);
    expect(stream.end()).toBe('');
  });

  it('say at the end that a character was cut off', () => {
    const stream = tokenizer.newStream();
    expect(stream.push(idOf(byteCharacters[0xe2]!))).toBe('');
    expect(stream.end()).toBe('\ufffd');
  });

  it('leave out control tokens unless asked', () => {
    expect(tokenizer.newStream().push(2)).toBe('');
    expect(tokenizer.newStream({ skipSpecial: false }).push(2)).toBe('<|im_end|>');
  });
});

describe('exportTokenizer', () => {
  it.each(['gguf', 'sentencepiece'])('gives the same tokenizer from %s', async (kind) => {
    const target = join(folder(), `exported-${kind}`);
    await mkdir(target);
    const source = kind === 'gguf' ? path : join(golden, 'stories260K');
    await exportTokenizer(source, target);
    const [original, exported] = [await loadTokenizer(source), await loadTokenizer(target)];
    const { vocabSize, bosId, eosIds, addsBos } = original;
    expect(exported).toMatchObject({ vocabSize, bosId, eosIds, addsBos });
    for (const text of ['hello w 12 Once upon\n é😀', '<|im_start|>x</s>', ' ', '']) {
      expect(exported.encode(text)).toEqual(original.encode(text));
      const ids = original.encode(text);
      for (const skipSpecial of [true, false])
        expect(exported.decode(ids, { skipSpecial })).toBe(original.decode(ids, { skipSpecial }));
    }
  });

  it('writes the chat template and the end tokens', async () => {
    const target = join(folder(), 'exported-files');
    await mkdir(target);
    await exportTokenizer(path, target);
    const read = async (name: string): Promise<unknown> => JSON.parse(await readFile(join(target, name), 'utf8'));
    expect(await read('tokenizer_config.json')).toMatchObject({
      chat_template: '{{ messages[0].content }}',
      bos_token: '<|im_start|>',
      eos_token: '<|im_end|>',
    });
    expect(await read('generation_config.json')).toEqual({ bos_token_id: 1, eos_token_id: [0, 2] });
  });

  it('names a folder that is not there', async () => {
    await expect(exportTokenizer(path, join(folder(), 'nowhere'))).rejects.toThrow(
      /^tokenizer: cannot write .*nowhere/,
    );
  });
});

describe('Hugging Face folders', () => {
  it('collect end ids from all their files', async () => {
    const target = join(folder(), 'ends');
    await mkdir(target);
    await exportTokenizer(path, target);
    await writeFile(join(target, 'config.json'), JSON.stringify({ eos_token_id: 7, bos_token_id: 4 }));
    await writeFile(join(target, 'generation_config.json'), JSON.stringify({ eos_token_id: [5, 6] }));
    const loaded = await loadTokenizer(target);
    expect(loaded.eosIds).toEqual([2, 5, 6, 7]);
    expect(loaded.bosId).toBe(1);
  });

  it('with Digits and ByteLevel are cut as the Rust implementation does', async () => {
    const target = join(folder(), 'digits');
    await mkdir(target);
    await exportTokenizer(path, target);
    const json = JSON.parse(await readFile(join(target, 'tokenizer.json'), 'utf8')) as Record<string, unknown>;
    json['pre_tokenizer'] = {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Digits', individual_digits: true },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
      ],
    };
    await writeFile(join(target, 'tokenizer.json'), JSON.stringify(json));
    const loaded = await loadTokenizer(target);
    for (const text of [' 12', 'he\u0085', 'a ²x', ' ٣', 'hello\ufeffhello w'])
      expect(loaded.encode(text)).toEqual(tokenizer.encode(text));
  });
});

describe('SentencePiece', () => {
  const source = join(golden, 'stories260K');

  it('decodes the golden text and encodes it back', async () => {
    const stories = await loadTokenizer(source);
    const { ids } = JSON.parse(readFileSync(join(source, 'golden_greedy_200.ids.json'), 'utf8')) as { ids: number[] };
    const text = readFileSync(join(source, 'golden_greedy_200.txt'), 'utf8');
    expect(stories.decode(ids, { skipSpecial: true })).toBe(text);
    expect(stories.encode(text)).toEqual(ids);
    expect([stories.vocabSize, stories.bosId, stories.eosIds, stories.addsBos]).toEqual([512, 1, [2], true]);
  });

  it('falls back to bytes, and streams them whole', async () => {
    const stories = await loadTokenizer(join(source, 'tok512.model'));
    const ids = stories.encode('a☃');
    expect(stories.decode(ids, { skipSpecial: true })).toBe('a☃');
    const stream = stories.newStream();
    // A stream continues a prompt: the space before a word stays.
    expect(ids.map((id) => stream.push(id))).toEqual([' a', '', '', '☃']);
  });

  it('refuses what is no model', async () => {
    const bad = join(folder(), 'bad.model');
    const bytes = await readFile(join(source, 'tok512.model'));
    await writeFile(bad, bytes.subarray(0, 1000));
    await expect(loadTokenizer(bad)).rejects.toThrow(ConfigError);
    await writeFile(bad, 'eyJh 0\n');
    await expect(loadTokenizer(bad)).rejects.toThrow(/bad\.model: how the text is cut is not known/);
    await writeFile(bad, '');
    await expect(loadTokenizer(bad)).rejects.toThrow('bad.model: no pieces; not a SentencePiece model');
  });
});

describe('mistakes', () => {
  it.each([
    [
      { 'tokenizer.ggml.pre': { string: 'martian' } },
      /pre-tokenizer 'martian' is not supported; known: default, gpt-2, smollm/,
    ],
    [
      { 'tokenizer.ggml.model': { string: 'rwkv' } },
      /tokenizer\.ggml\.model 'rwkv' is not supported; gpt2 and llama are$/,
    ],
    [{ 'tokenizer.ggml.model': { string: 'llama' } }, /268 tokens, 0 scores, 268 types; expected the same number$/],
  ] satisfies [Record<string, Value>, RegExp][])('%j', async (changes, message) => {
    const bad = join(folder(), 'bad.gguf');
    await writeGguf(bad, ggufTokenizer(changes), []);
    await expect(loadTokenizer(bad)).rejects.toThrow(message);
  });

  it('a folder without a tokenizer', async () => {
    const bare = join(folder(), 'bare');
    await mkdir(bare);
    await expect(loadTokenizer(bare)).rejects.toThrow(
      `tokenizer: ${bare} has neither tokenizer.json, nor vocab.json and merges.txt, nor one .model or .tiktoken file`,
    );
    await expect(loadTokenizer(join(bare, 'gone'))).rejects.toThrow(/gone: no such file or folder$/);
  });

  it('a tokenizer.json that is none, or of a kind that is not supported', async () => {
    const target = join(folder(), 'kinds');
    await mkdir(target);
    await writeFile(join(target, 'tokenizer.json'), '{"model":{"vocab":{"a":-1}}}');
    await expect(loadTokenizer(target)).rejects.toThrow(/^tokenizer\.json: not a tokenizer\.json: /);
    const json = { model: { type: 'BPE', vocab: { a: 0 }, merges: [] }, decoder: { type: 'WordPiece' } };
    await writeFile(join(target, 'tokenizer.json'), JSON.stringify(json));
    await expect(loadTokenizer(target)).rejects.toThrow(
      /decoder WordPiece is not supported; ByteLevel, Metaspace and ByteFallback are$/,
    );
  });
});
