import { expect, test } from 'vitest';
import { describeSettings, parseChatCommand } from '../../../../coordinator/terminal/chat-commands.ts';

test.each([
  ['Why?', undefined],
  ['a /help in the middle', undefined],
  ['/Users/me is a path', undefined],
  [' /help ', { kind: 'help' }],
  ['/bye', { kind: 'exit' }],
  ['/again', { kind: 'again' }],
  ['/system Be brief. /no', { kind: 'system', text: 'Be brief. /no' }],
  ['/system', { kind: 'system', text: undefined }],
  ['/set', { kind: 'settings' }],
  ['/set top-p 0.5', { kind: 'set', name: 'topP', value: 0.5 }],
  ['/set max-tokens 0', { kind: 'mistake', message: '/set max-tokens: expected a whole number 1 to 1048576, got "0"' }],
  ['/set seed 1.5', { kind: 'mistake', message: '/set seed: expected a whole number 0 to 4294967295, got "1.5"' }],
  ['/set top-p', { kind: 'mistake', message: '/set top-p: expected a number 0 to 1, got ""' }],
  [
    '/set heat 1',
    {
      kind: 'mistake',
      message: '/set: heat is none of temperature, top-k, top-p, min-p, repeat-penalty, max-tokens, seed',
    },
  ],
  ['/halp', { kind: 'mistake', message: '/halp: no such command; /help lists them' }],
])('%s', (line, expected) => {
  expect(parseChatCommand(line)).toEqual(expected);
});

test('settings are shown as they are typed', () => {
  const settings = {
    temperature: 0,
    topK: 40,
    topP: 0.95,
    minP: 0.05,
    repeatPenalty: 1,
    maxTokens: 256,
    seed: undefined,
  };
  expect(describeSettings(settings)).toBe(
    'temperature 0, top-k 40, top-p 0.95, min-p 0.05, repeat-penalty 1, max-tokens 256, seed random',
  );
});
