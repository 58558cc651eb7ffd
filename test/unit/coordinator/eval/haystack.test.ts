/** Needle texts: length, depth, and that a seed fixes them; the heat map. */
import { expect, test } from 'vitest';
import { needleOf, promptOf } from '../../../../coordinator/eval/haystack.ts';
import { heatMapSvg } from '../../../../coordinator/eval/heat-map.ts';

const words = (text: string): number => text.split(/\s+/).length;

test.each([64, 200, 1500])('fills %i tokens but for less than a sentence, needle at its depth', (tokens) => {
  const needle = needleOf(3);
  for (const depth of [0, 0.5, 1]) {
    const prompt = promptOf(needle, depth, tokens, 5, words);
    expect(words(prompt)).toBeLessThanOrEqual(tokens);
    expect(words(prompt)).toBeGreaterThan(tokens - 25);
    const hay = prompt.slice(0, -needle.question.length);
    expect(prompt.endsWith(needle.question)).toBe(true);
    expect(Math.abs(hay.indexOf(needle.fact) / hay.length - depth)).toBeLessThan(0.3);
    expect(prompt).toBe(promptOf(needle, depth, tokens, 5, words));
    expect(prompt.split(needle.answer)).toHaveLength(2);
  }
});

test('needles differ by seed', () => {
  expect(new Set([0, 1, 2, 3].map((seed) => needleOf(seed).answer)).size).toBe(4);
});

test('the heat map has a cell for every share, and escapes names', () => {
  const svg = heatMapSvg({
    title: 'a < b',
    columnTitle: 'tokens',
    rowTitle: 'depth',
    columns: ['1', '2'],
    rows: ['0 %', '100 %', 'x'],
    values: [
      [0, 1],
      [0.5, 0.25],
      [1, 1],
    ],
  });
  expect(svg.match(/<rect x=/g)).toHaveLength(6);
  expect(svg).toContain('a &lt; b');
  expect(svg).toContain('>25 %<');
});
