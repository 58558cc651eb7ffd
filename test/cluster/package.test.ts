/** The package as npm packs it, installed in a folder of its own: program, library, types and the documented example. */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { goldenFolder } from '../helpers/golden.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const model = join(goldenFolder, 'stories260K');
let folder: string;

const run = (command: string, args: readonly string[], cwd = folder) =>
  spawnSync(command, args, { cwd, encoding: 'utf8', timeout: 60_000, env: { ...process.env, TPLA_MODEL: '' } });

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'tpla-package-'));
  const packed = run('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', folder], root);
  expect(packed.stderr).toBe('');
  const modules = join(folder, 'node_modules');
  mkdirSync(join(modules, 'tpla'), { recursive: true });
  run('tar', ['-xzf', join(folder, packed.stdout.trim()), '--strip-components=1', '-C', join(modules, 'tpla')]);
  // What `npm install` would bring, without asking a registry.
  for (const name of readdirSync(join(root, 'node_modules')))
    if (!name.startsWith('.')) symlinkSync(join(root, 'node_modules', name), join(modules, name));
}, 60_000);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test('the example of docs/library.md runs', { timeout: 60_000 }, () => {
  copyFileSync(join(root, 'docs', 'examples', 'generate.mjs'), join(folder, 'generate.mjs'));
  const { status, stdout, stderr } = run(process.execPath, ['generate.mjs', model]);
  expect(status, stderr).toBe(0);
  const lines = stdout.trim().split('\n');
  expect(lines).toEqual([expect.stringMatching(/^"Once upon a time, there was/), expect.stringMatching(/^"The dog /)]);
  expect(stderr).toContain('The dog: length, 16 tokens');
});

test('the program runs, and finds its page and its examples', () => {
  const program = join(folder, 'node_modules', 'tpla', 'dist', 'coordinator', 'main.js');
  expect(run(process.execPath, [program, '--version']).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  const package_ = join(folder, 'node_modules', 'tpla');
  expect(readdirSync(join(package_, 'dist', 'coordinator', 'web'))).toContain('index.html');
  expect(readdirSync(join(package_, 'config', 'deploy'))).toContain('kubernetes.yaml');
  const planned = run(process.execPath, [program, 'plan', '--model', model, '--ranks', '2', '--json']);
  expect(planned.status, planned.stderr).toBe(0);
});

test('its types say what startCluster takes and gives', { timeout: 60_000 }, () => {
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  writeFileSync(
    join(folder, 'use.ts'),
    `import { startCluster, type GenerationEvent } from 'tpla';
await using cluster = await startCluster({ model: 'default', ranks: 2 });
for await (const event of cluster.generate({ prompt: [{ role: 'user', content: 'Hi' }], maxTokens: 8 })) {
  const seen: GenerationEvent = event;
  if (seen.kind === 'end') console.log(seen.usage.decodeTokensPerSecond satisfies number);
}
// @ts-expect-error ranks is a number
await startCluster({ ranks: 'two' });
`,
  );
  const compiler = join(root, 'node_modules', '.bin', 'tsc');
  const flags = '--noEmit --strict --target es2022 --lib es2023,esnext.disposable --module nodenext --types node'.split(
    ' ',
  );
  const { status, stdout } = run(compiler, [...flags, 'use.ts']);
  expect({ status, stdout }).toEqual({ status: 0, stdout: '' });
});
