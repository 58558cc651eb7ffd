import fc from 'fast-check';
import { expect, test } from 'vitest';
import { StopStrings } from '../../../coordinator/stop-strings.ts';

/** What a reader sees of pieces of text, piece by piece. */
function shown(stops: readonly string[], pieces: readonly string[]): { texts: string[]; stopped: boolean } {
  const filter = new StopStrings(stops);
  const texts: string[] = [];
  for (const piece of pieces) {
    const { text, stopped } = filter.push(piece);
    texts.push(text);
    if (stopped) return { texts, stopped };
  }
  texts.push(filter.flush());
  return { texts, stopped: false };
}

test('without stop strings everything passes at once', () => {
  expect(shown([], ['ab', 'c'])).toEqual({ texts: ['ab', 'c', ''], stopped: false });
});

test('an empty stop string is none', () => {
  expect(shown([''], ['ab'])).toEqual({ texts: ['ab', ''], stopped: false });
});

test('what may become a stop string is held back until it is certain', () => {
  expect(shown(['END'], ['a E', 'N', 'D b'])).toEqual({ texts: ['a ', '', ''], stopped: true });
  expect(shown(['END'], ['a E', 'N', 'E', 'x'])).toEqual({ texts: ['a ', '', 'EN', 'Ex', ''], stopped: false });
  expect(shown(['END'], ['a EN'])).toEqual({ texts: ['a ', 'EN'], stopped: false });
});

test('the earliest of several wins, also inside one piece', () => {
  expect(shown(['two', 'one'], ['0 one two'])).toEqual({ texts: ['0 '], stopped: true });
});

test('however the text is cut, the same is shown: all before the first stop string', () => {
  const letters = fc.string({ unit: fc.constantFrom('a', 'b'), maxLength: 30 });
  const stops = fc.array(fc.string({ unit: fc.constantFrom('a', 'b'), minLength: 1, maxLength: 4 }), { maxLength: 3 });
  fc.assert(
    fc.property(fc.array(letters, { maxLength: 8 }), stops, (pieces, stopList) => {
      const whole = pieces.join('');
      const { texts, stopped } = shown(stopList, pieces);
      const places = stopList.map((stop) => whole.indexOf(stop)).filter((place) => place !== -1);
      expect(stopped).toBe(places.length > 0);
      // The end of a stop string may arrive before a longer one that begins earlier: what counts is that none is shown.
      const text = texts.join('');
      if (places.length === 0) expect(text).toBe(whole);
      else expect(whole.startsWith(text) && !stopList.some((stop) => text.includes(stop))).toBe(true);
    }),
    { seed: 1, numRuns: 500 },
  );
});
