import { readFileSync } from 'node:fs';
import { open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ConfigError } from '../../../config/errors.ts';
import { openGguf, type GgufValue } from '../../../model/gguf.ts';
import { RangedFile } from '../../../model/ranged-file.ts';
import { golden, temporaryFolder, type ExpectedOutcome } from './fixtures.ts';

const folder = temporaryFolder();
const types = [
  'F32',
  'F16',
  'BF16',
  'Q8_0',
  'Q4_0',
  'Q4_1',
  'Q5_0',
  'Q5_1',
  'Q2_K',
  'Q3_K',
  'Q4_K',
  'Q5_K',
  'Q6_K',
  'IQ4_NL',
];

describe('metadata', () => {
  it.each(types)('of %s.gguf is what the reference reader sees', async (type) => {
    await using file = await openGguf(join(golden, 'quants', `${type}.gguf`));
    const expected = JSON.parse(readFileSync(join(golden, 'quants', `${type}.metadata.json`), 'utf8')) as {
      key: string;
      type: string;
      array_of: string | null;
      value: unknown;
    }[];
    // The reference list leaves this one out.
    const keys = [...file.metadata.keys()].filter((key) => key !== 'general.architecture');
    expect(keys).toEqual(expected.map(({ key }) => key));
    for (const { key, type, array_of: element, value } of expected) {
      const actual = file.metadata.get(key);
      expect(plain(actual, (element ?? type).endsWith('64') && !(element ?? type).startsWith('FLOAT'))).toEqual(value);
    }
  });

  it('passes over unwanted values and finds the same tensors', async () => {
    const path = join(golden, 'quants', 'Q4_K.gguf');
    await using whole = await openGguf(path);
    await using lean = await openGguf(path, (key) => key.startsWith('general.'));
    const places = ({ tensors }: typeof whole) =>
      [...tensors.values()].map(({ name, type, shape, offset }) => [name, type, shape, offset]);
    expect(places(lean)).toEqual(places(whole));
    expect(lean.metadata.size).toBeLessThan(whole.metadata.size);
    expect([...lean.metadata.keys()].every((key) => key.startsWith('general.'))).toBe(true);
  });

  it('keeps integers beyond 2^53 exact', async () => {
    await using file = await openGguf(join(golden, 'quants', 'Q4_K.gguf'));
    const wide = [...file.metadata.values()].filter((value) => typeof value === 'bigint');
    expect(wide.length).toBeGreaterThan(0);
  });
});

/** The expected file has 64-bit integers as decimal strings. */
function plain(value: GgufValue | undefined, asString: boolean): unknown {
  if (Array.isArray(value)) return value.map((element: GgufValue) => plain(element, asString));
  return asString ? String(value) : value;
}

describe('damaged and hostile files', () => {
  const cases = readFileSync(join(golden, 'malformed', 'expected.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as ExpectedOutcome)
    .filter(({ file }) => file.endsWith('.gguf'));

  it.each(cases)('$file: $expect $reason', async ({ file, expect: outcome }) => {
    // Damage is damage also in what nobody wants, but for the value of the alignment.
    for (const isWanted of [() => true, (key: string) => key === 'general.alignment']) {
      const opened = openGguf(join(golden, 'malformed', file), isWanted);
      if (outcome === 'ok') await (await opened)[Symbol.asyncDispose]();
      else await expect(opened).rejects.toThrow(ConfigError);
    }
  });

  it('says what and where', async () => {
    const message = async (name: string): Promise<string> => {
      try {
        await openGguf(join(golden, 'malformed', 'gguf', name));
      } catch (error) {
        return error instanceof Error ? error.message : '';
      }
      return 'opened';
    };
    expect(await message('own-data-not-enough.gguf')).toBe(
      "own-data-not-enough.gguf: tensor 't' ends at byte 160, but the file has 152; is the download complete?",
    );
    expect(await message('own-tensors-overlap.gguf')).toBe(
      "own-tensors-overlap.gguf: tensors 'a' and 'b' overlap; the file is damaged",
    );
    expect(await message('own-n-kv-huge.gguf')).toBe(
      'own-n-kv-huge.gguf: 1099511627776 metadata values announced, but only 45 bytes are left; the file is damaged',
    );
    expect(await message('own-kv-bad-align-13.gguf')).toBe(
      'own-kv-bad-align-13.gguf: general.alignment is 13, expected a power of two',
    );
  });

  it('refuses arrays nested thousands deep', async () => {
    const head = Buffer.alloc(24);
    head.write('GGUF');
    head.writeUInt32LE(3, 4);
    head.writeBigUInt64LE(1n, 16);
    const key = Buffer.from([1, 0, 0, 0, 0, 0, 0, 0, 0x6b, 9, 0, 0, 0]);
    const level = Buffer.from([9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    const path = join(folder(), 'deep.gguf');
    await writeFile(path, Buffer.concat([head, key, ...new Array<Buffer>(5000).fill(level)]));
    await expect(openGguf(path)).rejects.toThrow("deep.gguf: metadata 'k' nests arrays deeper than 4");
  });

  it('opens or refuses, whatever bytes are changed', async () => {
    const original = readFileSync(join(golden, 'quants', 'Q4_K.gguf'));
    const path = join(folder(), 'changed.gguf');
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.nat(original.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }),
        fc.nat(original.length),
        async (changes, length) => {
          const bytes = Buffer.from(original);
          for (const [at, value] of changes) bytes[at] = value;
          await writeFile(path, length % 2 === 0 ? bytes : bytes.subarray(0, length));
          try {
            await using file = await openGguf(path);
            expect(file.fileBytes).toBeGreaterThan(0);
          } catch (error) {
            expect(error).toBeInstanceOf(ConfigError);
          }
        },
      ),
      { seed: 7, numRuns: 300 },
    );
  });
});

describe('RangedFile', () => {
  // Sparse where the file system has holes; NTFS would write 5 GB.
  it.skipIf(process.platform === 'win32')('reads behind 4 GiB', async () => {
    const path = join(folder(), 'sparse');
    const offset = 5 * 2 ** 30 + 3;
    const handle = await open(path, 'w');
    await handle.write(Uint8Array.of(1, 2, 3, 4), 0, 4, offset);
    await handle.close();
    await using file = await RangedFile.open(path);
    expect(file.bytes).toBe(offset + 4);
    expect([...(await file.read(offset + 1, 2, 'the middle'))]).toEqual([2, 3]);
    await expect(file.read(offset + 1, 4, 'the end')).rejects.toThrow(
      `sparse: file ends inside the end: needs ${offset + 5} bytes, has ${offset + 4}; is the download complete?`,
    );
  });
});
