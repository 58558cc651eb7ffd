/** `tpla eval kl | choice | needle | longctx` with real processes on a small trained model: documents, files, interruption. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox, untilNoRanks } from '../helpers/program.ts';

const stories = join(goldenFolder, 'stories260K');
const story =
  'Once upon a time there was a little girl named Lily. She loved to play outside in the park. One day she saw a big dog. ' +
  'The dog was very happy and wanted to play with her. They ran and jumped all day long and then went home to eat.';

let sandbox: Sandbox;
beforeEach(() => {
  sandbox = new Sandbox();
});
afterEach(() => sandbox[Symbol.dispose]());

const file = (name: string, content: string): string => {
  const path = join(sandbox.folder, name);
  writeFileSync(path, content);
  return path;
};

const evaluate = (args: readonly string[]) => sandbox.run(['eval', ...args, '--model', stories, '--json']);

test('kl of a scheme that is exact is nothing, also in decode, as a curve', async () => {
  const text = file('text.txt', story);
  const args = ['kl', '--text', text, '--window', '24', '--max-windows', '2', '--decode-from', '8', '--bucket', '10'];
  const ran = await evaluate([...args, '--scheme', 'gqa', '--ranks', '2']);
  expect(ran.stderr).not.toContain('tpla:');
  const report = JSON.parse(ran.stdout);
  expect(report).toMatchObject({
    positions: 32,
    windows: 2,
    firstPosition: 8,
    top1Agreement: 1,
    referenceScheme: 'gqa',
  });
  expect(report.mean).toBeLessThan(1e-9);
  expect(report.curve.map((point: { from: number; positions: number }) => [point.from, point.positions])).toEqual([
    [8, 20],
    [18, 12],
  ]);
});

test('choice prefers what the model would say', async () => {
  const items = [
    { task: 'said', question: 'Once upon a', choices: ['time', 'zoo quick'], answer: 0 },
    { task: 'said', question: 'They were very', choices: ['xylophone', 'happy'], answer: 1 },
    { task: 'other', question: 'One', choices: ['day', 'qq'], answer: 1 },
  ];
  const path = file('items.jsonl', items.map((item) => JSON.stringify(item)).join('\n'));
  const ran = await evaluate(['choice', '--items', path, '--cue', 'none', '--ranks', '1']);
  const { tasks, picks } = JSON.parse(ran.stdout);
  expect(picks).toEqual([0, 1, 0]);
  expect(tasks).toMatchObject({ said: { accuracy: 1, items: 2 }, other: { accuracy: 0, items: 1 } });
});

test('needle draws its grid', async () => {
  const out = join(sandbox.folder, 'needle.json');
  const sizes = '--lengths 96,128 --depths 2 --trials 1 --ranks 1';
  const needle = await evaluate(['needle', ...sizes.split(' '), '--out', out]);
  expect(needle.stderr).not.toContain('tpla:');
  const report = JSON.parse(needle.stdout);
  expect(report.grid).toHaveLength(2);
  expect(report.answers.map(({ tokens }: { tokens: number }) => tokens <= 128)).toEqual([true, true, true, true]);
  expect(readFileSync(join(sandbox.folder, 'needle.svg'), 'utf8')).toContain('<svg');
  expect(JSON.parse(readFileSync(out, 'utf8'))).toEqual(report);
});

test('longctx finds answers whatever their case, and counts what does not fit', async () => {
  const prompts = [
    { task: 't', prompt: 'Once upon a', answers: ['TIME'] },
    { task: 't', prompt: story.repeat(12), answers: ['x'] },
  ];
  const path = file('long.jsonl', prompts.map((item) => JSON.stringify(item)).join('\n'));
  const long = await evaluate(['longctx', '--items', path, '--max-tokens', '6', '--ranks', '1']);
  expect(JSON.parse(long.stdout)).toMatchObject({ tasks: { t: { accuracy: 1, items: 1 } }, tooLong: 1 });
});

test('Ctrl-C leaves no process but a state, from which the same command goes on', async () => {
  const out = join(sandbox.folder, 'needle.json');
  const args = ['eval', 'needle', '--model', stories, '--ranks', '1', '--out', out, '--json'];
  const sizes = ['--lengths', '96', '--depths', '3', '--trials', '1000'];
  const running = sandbox.start([...args, ...sizes]);
  while (!existsSync(`${out}.state`) || readFileSync(`${out}.state`, 'utf8').split('\n').length < 4)
    await new Promise((resolve) => setImmediate(resolve));
  running.child.kill('SIGINT');
  expect((await running.finished).code).toBe(130);
  await untilNoRanks(sandbox.folder);
  const again = sandbox.start([...args, ...sizes]);
  const before = readFileSync(`${out}.state`, 'utf8').split('\n').length;
  while (readFileSync(`${out}.state`, 'utf8').split('\n').length <= before)
    await new Promise((resolve) => setImmediate(resolve));
  again.child.kill('SIGINT');
  expect((await again.finished).stderr).toContain('going on behind');
});

test('refuses items that are none', async () => {
  const path = file('bad.jsonl', '{"task":"t","question":"q","choices":["a","b"],"answer":2}\n');
  const ran = await evaluate(['choice', '--items', path]);
  expect(ran.code).toBe(2);
  expect(ran.stderr).toContain('bad.jsonl:1: ');
  expect(ran.stderr).toContain('answer is not the index of a choice');
});
