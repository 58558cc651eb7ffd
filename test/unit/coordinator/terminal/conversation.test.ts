import { expect, test } from 'vitest';
import { Conversation } from '../../../../coordinator/terminal/conversation.ts';
import { openText } from '../../../../coordinator/text.ts';
import { Sandbox } from '../../../helpers/program.ts';
import { chatModel } from '../../../helpers/serving.ts';

test('the oldest turns are left out, the system message and the last message never', async () => {
  using sandbox = new Sandbox();
  const text = await openText(chatModel(sandbox));
  const chat = new Conversation(text, { system: 'Be good', isRaw: false });
  for (const i of [1, 2, 3]) {
    chat.ask(`question ${i}`);
    chat.answered(`answer ${i}`);
  }
  chat.ask('question 4');
  const whole = chat.prompt(1000);
  expect(whole.leftOut).toBe(0);
  const cut = chat.prompt(whole.promptIds.length - 1);
  expect(cut.leftOut).toBe(2);
  const shown = text.tokenizer.decode([...cut.promptIds], { skipSpecial: true });
  expect(shown).toContain('Be good');
  expect(shown).toContain('question 2 answer 2');
  expect(shown).not.toContain('1');
  expect(chat.prompt(1).leftOut).toBe(6);
  expect(text.tokenizer.decode([...chat.prompt(1).promptIds], { skipSpecial: true })).toContain('question 4');
  expect(chat.takeBack()).toBe('question 4');
  expect(chat.takeBack()).toBe('question 3');
  chat.clear();
  expect(chat.takeBack()).toBeUndefined();
});
