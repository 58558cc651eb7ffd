/** `tpla run` without a prompt, on a real terminal: turns, commands, Ctrl-C, history, and what stays behind. */
import { describe, expect, test } from 'vitest';
import { rankProcesses, Sandbox } from '../helpers/program.ts';
import { chatModel } from '../helpers/serving.ts';
import { hasScript, keys, startOnTerminal } from '../helpers/terminal.ts';

if (!hasScript) console.warn('terminal chat: skipped, util-linux `script` is not installed');

describe.skipIf(!hasScript)('a chat in the terminal', () => {
  test('takes turns, obeys commands, stops an answer and goes on, keeps its history', { timeout: 60_000 }, async () => {
    using sandbox = new Sandbox();
    // Sums over sockets and three ranks: slow enough that an answer can be stopped.
    const args = ['run', '--model', chatModel(sandbox), '--ranks', '3', '--transport', 'zeromq'];
    const chat = startOnTerminal(sandbox, [...args, '--max-tokens', '8', '--context', '512']);
    await chat.shows('/help lists the commands');
    chat.type(`Once upon a time${keys.enter}`);
    await chat.shows('8 tokens at ');
    chat.type(`The dog${keys.enter}`);
    await chat.shows('8 tokens at ');
    chat.type(`/set max-tokens 400${keys.enter}`);
    chat.type(`/set temperature 7x${keys.enter}`);
    await chat.shows('/set temperature: expected a number 0 to 100, got "7x"');
    chat.type(`"""Two${keys.enter}lines"""${keys.enter}`);
    await chat.shows('lines');
    // The answer's first words.
    await expect.poll(() => chat.shown().split('lines').at(-1)?.trim().length ?? 0).toBeGreaterThan(20);
    chat.type(keys.interrupt);
    await chat.shows('(stopped)');
    await chat.shows('> ');
    chat.type(`/again${keys.enter}`);
    await chat.shows('/again');
    await expect.poll(() => chat.shown().split('/again').at(-1)?.trim().length ?? 0).toBeGreaterThan(20);
    chat.type(keys.interrupt);
    await chat.shows('(stopped)');
    await chat.shows('> ');
    chat.type(`half a line${keys.interrupt}`);
    chat.type(`/ranks${keys.enter}`);
    await chat.shows('peak memory');
    chat.type(keys.interrupt);
    await chat.shows('prompt tokens at');
    expect(await chat.exited).toBe(0);
    expect(rankProcesses(sandbox.folder).size).toBe(0);
    expect(sandbox.leftovers()).toEqual([]);

    const again = startOnTerminal(sandbox, args, { NO_COLOR: '1' });
    await again.shows('/help lists the commands');
    again.type(keys.up.repeat(2));
    await again.shows('/again');
    again.type(keys.interrupt);
    again.type(keys.end);
    expect(await again.exited).toBe(0);
    expect(again.shown()).not.toContain('\u001b[2m');
    expect(chat.shown()).toContain('\u001b[2m');
  });

  test('a bar with the time left shows how far the ranks have loaded', async () => {
    using sandbox = new Sandbox();
    const run = startOnTerminal(sandbox, ['run', '--model', chatModel(sandbox), '--max-tokens', '2', 'Once']);
    await run.shows('10/10 layers');
    expect(await run.exited).toBe(0);
  });

  test('needs a terminal: otherwise standard input is the prompt', async () => {
    using sandbox = new Sandbox();
    const run = startOnTerminal(sandbox, ['run', '--model', chatModel(sandbox), '--json']);
    await run.shows('prompt: none given');
    expect(await run.exited).toBe(2);
  });
});
