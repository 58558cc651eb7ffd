/** `tpla run --convert` with real processes: converts once, whoever comes first, and finds the result afterwards. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';

const stories = join(goldenFolder, 'stories260K');
const flags = ['--model', stories, '--ranks', '1', '--raw', '--max-tokens', '20', '--temperature', '0'];
const settings = ['--exact', '--calibration-tokens', '64'];

let sandbox: Sandbox;
beforeAll(() => {
  sandbox = new Sandbox();
});
afterAll(() => sandbox[Symbol.dispose]());

test('two processes at once, then a third that finds the result; the text is the source model’s', async () => {
  const run = (...more: string[]) => sandbox.run(['run', 'Once', ...flags, ...more]);
  const [source, ...both] = await Promise.all([run(), run('--convert', ...settings), run('--convert', ...settings)]);
  for (const { code, stdout, stderr } of both) {
    expect(code, stderr).toBe(0);
    expect(stdout).toBe(source.stdout);
  }
  expect(both.some(({ stderr }) => stderr.includes('converting stories260K to a latent cache (once)'))).toBe(true);
  const kept = readdirSync(join(sandbox.folder, 'cache', 'converted'));
  expect(kept).toHaveLength(1);
  expect(kept[0]).toMatch(/^stories260K-[0-9a-f]{16}$/);
  const third = await run('--convert', ...settings);
  expect(third.stdout).toBe(source.stdout);
  expect(third.stderr).not.toContain('converting');
}, 120_000);

test('flags of a conversion are refused without one', async () => {
  const { code, stderr } = await sandbox.run(['run', 'Once', ...flags, '--rope-dim', '8', '--exact']);
  expect(code).toBe(2);
  expect(stderr).toContain('--exact, --rope-dim: says how to convert the model; give --convert too, or leave it out');
});
