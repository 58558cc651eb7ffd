import { readFileSync } from 'node:fs';
import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ConfigError } from '../../../config/errors.ts';
import { fromFloat32 } from '../../../model/dequantize.ts';
import { repeatedKey } from '../../../model/json-keys.ts';
import { openSafetensors, writeSafetensors, type TensorSource } from '../../../model/safetensors.ts';
import { floatsOf, golden, temporaryFolder, type ExpectedOutcome } from './fixtures.ts';

const folder = temporaryFolder();

describe('damaged and hostile files', () => {
  const cases = readFileSync(join(golden, 'malformed', 'expected.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as ExpectedOutcome)
    .filter(({ file }) => file.endsWith('.safetensors'));

  it.each(cases)('$file: $expect $reason', async ({ file, expect: outcome }) => {
    const opened = openSafetensors(join(golden, 'malformed', file));
    if (outcome === 'refuse') await expect(opened).rejects.toThrow(ConfigError);
    else await opened.then(async (store) => store[Symbol.asyncDispose](), expectConfigError(outcome));
  });

  it('a tensor named __proto__ is a tensor', async () => {
    await using file = await openSafetensors(join(golden, 'malformed/safetensors/own-proto-key.safetensors'));
    expect([...file.tensors.keys()]).toEqual(['__proto__']);
  });

  it('says what and where', async () => {
    const open = (name: string): Promise<unknown> => openSafetensors(join(golden, 'malformed/safetensors', name));
    await expect(open('own-hole-between-tensors.safetensors')).rejects.toThrow(
      "own-hole-between-tensors.safetensors: tensor 'b' starts at byte 124, expected 120: tensors must neither overlap nor leave holes",
    );
    await expect(open('invalid_info.safetensors')).rejects.toThrow(
      "invalid_info.safetensors: tensor 'test' I32 [2, 2] needs 16 bytes, its offsets 0..4 give 4",
    );
    await expect(open('own-duplicate-key.safetensors')).rejects.toThrow(
      "own-duplicate-key.safetensors: the header names 'a' twice",
    );
  });

  it('opens or refuses, whatever bytes are changed', async () => {
    const original = readFileSync(join(golden, 'quants', 'F32.safetensors'));
    const path = join(folder(), 'changed.safetensors');
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(260), fc.nat(255)), { minLength: 1, maxLength: 3 }),
        async (changes) => {
          const bytes = Buffer.from(original);
          for (const [at, value] of changes) bytes[at] = value;
          await writeFile(path, bytes);
          try {
            await using file = await openSafetensors(path);
            expect(file.fileBytes).toBe(original.length);
          } catch (error) {
            expect(error).toBeInstanceOf(ConfigError);
          }
        },
      ),
      { seed: 7, numRuns: 300 },
    );
  });
});

function expectConfigError(outcome: string): (error: unknown) => void {
  return (error) => {
    expect(outcome).toBe('refuse-or-exact');
    expect(error).toBeInstanceOf(ConfigError);
  };
}

describe('writeSafetensors', () => {
  const source = (
    name: string,
    type: 'f32' | 'f16' | 'bf16',
    shape: readonly number[],
    values: Float32Array,
  ): TensorSource => ({
    name,
    type,
    shape,
    read: () => Promise.resolve(fromFloat32(values, type)),
  });
  const a = Float32Array.from({ length: 6 }, (_, i) => i - 2.5);
  const b = Float32Array.from({ length: 3 }, (_, i) => i / 4);

  it('writes what it reads back, the same bytes each time, whatever the order', async () => {
    const tensors = [
      source('half', 'f16', [3], b),
      source('z', 'f32', [2, 3], a),
      source('a', 'f32', [3], b),
      source('none', 'f32', [0, 4], new Float32Array(0)),
    ];
    const [first, second] = [join(folder(), 'first.safetensors'), join(folder(), 'second.safetensors')];
    await writeSafetensors(first, tensors, { format: 'pt', by: 'test' });
    await writeSafetensors(second, tensors.toReversed(), { by: 'test', format: 'pt' });
    expect(await readFile(second)).toEqual(await readFile(first));
    await using file = await openSafetensors(first);
    expect([...file.metadata]).toEqual([
      ['by', 'test'],
      ['format', 'pt'],
    ]);
    expect([...file.tensors.values()].map(({ name, type, shape }) => [name, type, shape])).toEqual([
      ['a', 'f32', [3]],
      ['none', 'f32', [0, 4]],
      ['z', 'f32', [2, 3]],
      ['half', 'f16', [3]],
    ]);
    for (const { offset, type } of file.tensors.values()) expect(offset % (type === 'f32' ? 4 : 2)).toBe(0);
    const { file: handle, offset, bytes } = file.tensors.get('z')!;
    expect(new Float32Array((await handle.read(offset, bytes, 'z')).buffer)).toEqual(a);
  });

  it('leaves nothing behind when a tensor cannot be read', async () => {
    const target = join(folder(), 'failing');
    await mkdir(target);
    const failing: TensorSource = {
      name: 'b',
      type: 'f32',
      shape: [1],
      read: () => Promise.reject(new Error('no disk')),
    };
    await expect(
      writeSafetensors(join(target, 'model.safetensors'), [source('a', 'f32', [3], b), failing]),
    ).rejects.toThrow('no disk');
    expect(await readdir(target)).toEqual([]);
  });

  it('leaves nothing behind when the name is taken by a folder', async () => {
    const target = join(folder(), 'taken');
    await mkdir(join(target, 'model.safetensors'), { recursive: true });
    await expect(writeSafetensors(join(target, 'model.safetensors'), [source('a', 'f32', [3], b)])).rejects.toThrow(
      /^cannot write .*model\.safetensors: /,
    );
    expect(await readdir(target)).toEqual(['model.safetensors']);
  });

  it('names a file that is not there', async () => {
    await expect(openSafetensors(join(folder(), 'gone'))).rejects.toThrow(/^model: cannot open .*gone: /);
  });

  it('names the folder that is not there', async () => {
    await expect(writeSafetensors(join(folder(), 'nowhere', 'x.safetensors'), [])).rejects.toThrow(
      /cannot write .*nowhere/,
    );
  });
});

describe('sharded folders', () => {
  it('holds the tensors of all shards', async () => {
    await using sharded = await openSafetensors(join(golden, 'tiny', 'llama-sharded'));
    expect(new Set([...sharded.tensors.values()].map(({ file }) => file.name)).size).toBe(3);
    expect(sharded.tensors.size).toBe(21);
  });

  it('refuses an index that points outside its folder', async () => {
    const path = join(folder(), 'outside');
    await mkdir(path);
    await writeFile(
      join(path, 'model.safetensors.index.json'),
      JSON.stringify({ weight_map: { a: '../x.safetensors' } }),
    );
    await expect(openSafetensors(path)).rejects.toThrow(
      "model.safetensors.index.json: weight_map names '../x.safetensors', expected a file of the same folder",
    );
  });

  it('names a missing shard', async () => {
    const path = join(folder(), 'missing');
    await mkdir(path);
    await writeFile(
      join(path, 'model.safetensors.index.json'),
      JSON.stringify({ weight_map: { a: 'gone.safetensors' } }),
    );
    await expect(openSafetensors(path)).rejects.toThrow(/^model: cannot open .*gone\.safetensors/);
  });
});

describe('repeatedKey', () => {
  it.each([
    ['{"a":1,"b":{"a":2},"c":["a","a",{"a":1}]}', undefined],
    ['{"a":1,"b":2,"a":3}', 'a'],
    ['{"a":{"x":1,"\\u0078":2}}', 'x'],
    ['{"a\\"b":1,"a\\"b":2}', 'a"b'],
    ['{"a":"}{\\",\\"a\\":"}', undefined],
    ['[]', undefined],
  ])('%s', (text, key) => {
    expect(repeatedKey(text)).toBe(key);
  });
});

describe('values', () => {
  it('are those of the file', async () => {
    const floats = await floatsOf(join(golden, 'quants', 'F32.safetensors'));
    expect(floats.size).toBeGreaterThan(0);
    for (const values of floats.values()) expect(values.length).toBeGreaterThan(0);
  });
});
