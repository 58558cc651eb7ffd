/** What a user can get wrong: one line that says what, where, expected, got and what to do; exit code 2; nothing left. */
import { copyFileSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { goldenFolder, tinyModel } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';

let sandbox: Sandbox;
beforeEach(() => {
  sandbox = new Sandbox();
});
afterEach(() => sandbox[Symbol.dispose]());

const stories = join(goldenFolder, 'stories260K');
const llama = tinyModel('llama-gqa');

/** Runs and checks what all refusals share; gives the lines on stderr. */
async function refused(args: readonly string[], code: 2 | 3 = 2, input?: Uint8Array): Promise<string> {
  const finished = await sandbox.run(args, input === undefined ? {} : { input });
  expect(finished).toMatchObject({ code, stdout: '' });
  expect(finished.stderr).not.toMatch(/^\s+at /m);
  expect(sandbox.ranks().size).toBe(0);
  const text = finished.stderr.replaceAll(sandbox.folder, 'SANDBOX').trim();
  return text.replace(/^scheme .*\n/, '');
}

function inSandbox(name: string, text: string): string {
  const path = join(sandbox.folder, 'cache', name);
  mkdirSync(join(sandbox.folder, 'cache'), { recursive: true });
  writeFileSync(path, text);
  return path;
}

const raw = ['run', '--raw', '--model', stories];

test.each<[string, readonly string[], RegExp]>([
  ['no command', [], /^tpla: name a command; see tpla --help$/],
  ['an unknown command', ['rnu'], /^tpla: Did you mean run\?; see tpla rnu --help$/],
  [
    'an unknown flag',
    ['run', '--tempreature', '1', 'hi'],
    /^tpla: Unknown argument: tempreature; see tpla run --help$/,
  ],
  [
    'a number out of range',
    ['run', '--top-p', '1.5', 'hi'],
    /^tpla: --top-p: expected 0 to 1, got 1\.5; see tpla run --help$/,
  ],
  [
    'a missing model',
    ['run', '--model', './none', 'hi'],
    /^tpla: model \.\/none: no such file or folder; name a Hugging Face folder, a GGUF file, or default$/,
  ],
  [
    'a model without tokenizer',
    ['run', '--model', llama, 'hi'],
    /^tpla: tokenizer: .*llama-gqa has neither tokenizer\.json/,
  ],
  [
    'a flag given twice',
    [...raw, '--scheme', 'gqa', '--scheme', 'mla', 'hi'],
    /^tpla: --scheme: given 2 times; give it once$/,
  ],
  [
    'a number left out',
    [...raw, '--ranks', '--json', 'hi'],
    /^tpla: Not enough arguments following: ranks; see tpla run --help$/,
  ],
  ['too many ranks', [...raw, '--ranks', '65', 'hi'], /^tpla: --ranks: expected a whole number from 1 to 64, got 65$/],
  [
    'a latent scheme for a GQA model',
    [...raw, '--scheme', 'tpla', 'hi'],
    /^tpla: scheme: tpla needs a latent cache, but this llama model is GQA; convert it first/,
  ],
  [
    'positions dealt to ranks for a GQA model',
    [...raw, '--scheme', 'dcp', 'hi'],
    /^tpla: scheme: dcp needs a latent cache, but this llama model is GQA; convert it first/,
  ],
  [
    'a prompt longer than the context',
    [...raw, '--context', '8', 'Once upon a time there was a cat'],
    /^tpla: prompt: \d+ tokens and room for at least 1 more do not fit a context of 8; shorten it by \d+ or raise --context$/,
  ],
  [
    'a context longer than the model',
    [...raw, '--context', '9999', 'hi'],
    /^tpla: context: 9999 tokens are more than this llama model was made for \(512\); use at most 512$/,
  ],
  ['an empty prompt', ['run', '--model', stories, ''], /^tpla: prompt: it is empty; give a text$/],
  [
    'ids outside the vocabulary',
    ['eval', 'logits', '--model', llama, '--ids', '1,9999', '--out', '/dev/null'],
    /^tpla: --ids: 9999 is not below the vocabulary size 272; use ids of this model$/,
  ],
  [
    'ids that are no numbers',
    ['eval', 'logits', '--model', llama, '--ids', '1,x', '--out', '/dev/null'],
    /^tpla: --ids: expected whole numbers such as 1,2,3, got "x"$/,
  ],
])('%s', async (_, args, message) => {
  expect(await refused(args)).toMatch(message);
  expect(sandbox.leftovers()).toEqual([]);
});

test('input that is not UTF-8', async () => {
  const input = Uint8Array.of(0x61, 0xc3, 0xa4, 0xff, 0x62);
  expect(await refused(['run', '--model', stories], 2, input)).toBe(
    'tpla: prompt on standard input: not valid UTF-8 at byte 3; convert it to UTF-8',
  );
});

test('a mistyped cluster file: every mistake with its line', async () => {
  const file = inSandbox('cluster.yaml', `model: ${stories}\nrnaks: 2\nranks: [{ hots: local }]\n`);
  expect(await refused(['run', '--config', file, 'hi'])).toBe(
    'tpla: SANDBOX/cache/cluster.yaml:2, rnaks: unknown key; did you mean ranks?\n' +
      'SANDBOX/cache/cluster.yaml:3, ranks.0.hots: unknown key; did you mean host?',
  );
});

test('a model file that ends early', async () => {
  const folder = join(sandbox.folder, 'cache', 'cut');
  mkdirSync(folder, { recursive: true });
  for (const name of ['config.json', 'model.safetensors']) copyFileSync(join(llama, name), join(folder, name));
  truncateSync(join(folder, 'model.safetensors'), 100_000);
  expect(await refused(['plan', '--model', folder])).toMatch(/model\.safetensors.*100000/);
});

test('a model of an unknown family', async () => {
  const folder = join(sandbox.folder, 'cache', 'odd');
  mkdirSync(folder, { recursive: true });
  const config = { ...JSON.parse(readFileSync(join(llama, 'config.json'), 'utf8')), model_type: 'rwkv' };
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
  copyFileSync(join(llama, 'model.safetensors'), join(folder, 'model.safetensors'));
  expect(await refused(['plan', '--model', folder])).toMatch(/model_type 'rwkv' is not supported; known: .*llama/);
});

test('a control port that is taken', async () => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    const address = server.address();
    const bind = `tcp://127.0.0.1:${typeof address === 'object' && address !== null ? address.port : 0}`;
    const file = inSandbox('cluster.yaml', `model: ${stories}\nranks: [{}]\ncoordinator: { bind: '${bind}' }\n`);
    expect(await refused(['run', '--raw', '--config', file, 'hi'])).toBe(
      `tpla: cannot bind ${bind}: Address already in use; choose a free address`,
    );
  } finally {
    server.close();
  }
});

test('what a rank refuses is the message of the run', async () => {
  expect(await refused([...raw, '--device', 'no-such-device', 'hi'])).toMatch(/^tpla: rank \d: .*no-such-device/);
  expect(sandbox.leftovers()).toEqual([]);
});
