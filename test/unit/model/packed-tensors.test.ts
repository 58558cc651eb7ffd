import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { unpacked } from '../../../model/packed-tensors.ts';
import { openSafetensors, writeSafetensors } from '../../../model/safetensors.ts';
import { seededRandom } from '../../helpers/random.ts';

let folder: string;
beforeAll(async () => (folder = await mkdtemp(join(tmpdir(), 'packed-'))));
afterAll(() => rm(folder, { recursive: true }));

describe('packed tensors', () => {
  it('come back with their type, shape and bytes, written in pieces', async () => {
    const random = seededRandom(3);
    const bytes = Uint8Array.from({ length: 3 * 2 * 20 }, () => Math.floor(random() * 256));
    const path = join(folder, 'model.safetensors');
    await writeSafetensors(path, [
      {
        name: 'a',
        type: 'q4_1',
        shape: [3, 64],
        read: async function* () {
          yield bytes.subarray(0, 40);
          yield bytes.subarray(40);
        },
      },
      { name: 'b', type: 'f16', shape: [2], read: () => bytes.subarray(0, 4) },
    ]);
    await using file = await openSafetensors(path);
    const a = file.tensors.get('a');
    expect(a).toMatchObject({ type: 'q4_1', shape: [3, 64], bytes: 120 });
    expect(await a?.file.read(a.offset, a.bytes, 'a')).toEqual(bytes);
    expect(file.tensors.get('b')).toMatchObject({ type: 'f16', shape: [2] });
  });

  it.each([
    [
      '{"a":"q4_1"}',
      "x: tpla_packed says that tensor 'a' holds q4_1, but it is u8 [3, 41], expected u8 rows of whole blocks",
    ],
    ['{"a":"q9"}', "x: tpla_packed says that tensor 'a' holds q9"],
    ['{"c":"q4_1"}', "x: tpla_packed names 'c', which is no tensor"],
    ['[1', 'x: tpla_packed must map tensor names to types'],
  ])('refuses %s', (text, message) => {
    const tensor = { name: 'a', type: 'u8', shape: [3, 41], offset: 0, bytes: 123 };
    expect(() => unpacked([tensor], new Map([['tpla_packed', text]]), 'x')).toThrow(message);
  });
});
