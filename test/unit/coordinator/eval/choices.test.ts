/** Where a choice begins among the tokens, and how answers are counted. */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { accuracyOf, continuationsOf } from '../../../../coordinator/eval/choices.ts';
import { openText } from '../../../../coordinator/text.ts';
import { goldenFolder } from '../../../helpers/golden.ts';

test('choices follow the question, with a cue where the task has one', async () => {
  const text = await openText(join(goldenFolder, 'stories260K'));
  const item = { task: 'x', question: 'The cat sat', choices: ['on the mat', ', too'] };
  for (const [cue, starts] of [
    ['none', ['The cat sat', 'The cat sat']],
    ['auto', ['The cat sat\nAnswer:', 'The cat sat\nAnswer:']],
  ] as const) {
    const pairs = continuationsOf(item, cue, text);
    const decode = (ids: readonly number[]): string => {
      const stream = text.newStream();
      return ids.map((id) => stream.push(id)).join('') + stream.end();
    };
    pairs.forEach(({ ids, from }, i) => {
      expect(ids.slice(0, from)).toEqual(text.encodeRaw(starts[i]!).slice(0, from));
      expect(decode(ids.slice(1))).toContain(item.choices[i]!);
    });
    expect(pairs.map(({ bytes }) => bytes)).toEqual([10, 5]);
  }
});

test('the same continuation behind each of several beginnings', async () => {
  const text = await openText(join(goldenFolder, 'stories260K'));
  const item = { task: 'w', question: '_', choices: ['a', 'b'], context_options: ['Tom', 'Ann'], continuation: 'ran' };
  const pairs = continuationsOf(item, 'auto', text);
  expect(pairs.map(({ ids }) => ids)).toEqual([text.encodeRaw('Tom ran'), text.encodeRaw('Ann ran')]);
});

test('accuracy by the sum and by the sum over the length', () => {
  const items = [
    { answer: 1, logprobs: [-4, -6], lengths: [2, 12] }, // right only when lengths count
    { answer: 0, logprobs: [-1, -3], lengths: [4, 4] }, // right both ways
  ];
  expect(accuracyOf(items)).toEqual({
    accuracy: 0.5,
    normalizedAccuracy: 1,
    standardError: Math.sqrt(0.125),
    items: 2,
  });
});
