/** Which slot a prompt gets, and what of it need not be read again. */
import { describe, expect, test } from 'vitest';
import { SlotMemory } from '../../../coordinator/slot-memory.ts';

const ids = (length: number, from = 0): number[] => Array.from({ length }, (_, i) => from + i);
const prompt = (tokens: number[], ...lengths: number[]) => {
  let start = 0;
  const pieces = new Map(lengths.map((length) => [(start += length) - length, length]));
  return { ids: tokens, pieces };
};

describe('slot memory', () => {
  test('whole pieces of the common beginning, but never the last token', () => {
    const memory = new SlotMemory(2);
    memory.keep(1, prompt(ids(300), 100, 100, 100), 0);
    const changed = [...ids(250), ...ids(100, 5000)];
    expect(memory.take([0, 1], changed, 1, 0)).toEqual({
      slot: 1,
      pieces: new Map([
        [0, 100],
        [100, 100],
      ]),
    });
    memory.keep(1, prompt(ids(300), 100, 100, 100), 0);
    expect(memory.take([0, 1], ids(300), 1, 0).pieces.size).toBe(2);
  });

  test('only a whole earlier prompt where its end is all that is kept', () => {
    const memory = new SlotMemory(1);
    memory.keep(0, prompt(ids(300), 100, 100, 100), 0);
    expect(memory.take([0], [...ids(250), ...ids(100, 5000)], 1, 0, true).pieces.size).toBe(0);
    memory.keep(0, prompt(ids(300), 100, 100, 100), 0);
    expect(memory.take([0], ids(400), 1, 0, true).pieces.size).toBe(3);
  });

  test('what was taken, what is short and what another epoch left is forgotten', () => {
    const memory = new SlotMemory(1);
    memory.keep(0, prompt(ids(63), 63), 0);
    expect(memory.take([0], ids(200), 1, 0).pieces.size).toBe(0);
    memory.keep(0, prompt(ids(100), 100), 0);
    expect(memory.take([0], ids(200), 1, 0).pieces.size).toBe(1);
    expect(memory.take([0], ids(200), 1, 0).pieces.size).toBe(0);
    memory.keep(0, prompt(ids(100), 100), 0);
    expect(memory.take([0], ids(200), 1, 1).pieces.size).toBe(0);
  });

  test('a stranger gets the first slot without a memory, else the one left alone longest', () => {
    const memory = new SlotMemory(3);
    memory.keep(0, prompt(ids(100), 100), 0);
    expect(memory.take([0, 1, 2], ids(80, 9000), 1, 0).slot).toBe(1);
    memory.keep(2, prompt(ids(100, 100), 100), 0);
    memory.keep(1, prompt(ids(100, 200), 100), 0);
    expect(memory.take([0, 1, 2], ids(80, 9000), 1, 0).slot).toBe(0);
    expect(memory.take([1, 2], ids(80, 9000), 1, 0).slot).toBe(2);
  });
});
