/** `tpla rotate` with real processes: what it writes is read by runs of the same setting, and refused by others. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';

const stories = join(goldenFolder, 'stories260K');

test('corrections are fitted to a converted model and used', async () => {
  using sandbox = new Sandbox();
  const [model, fits, text] = ['model', 'fits', 'text'].map((name) => join(sandbox.folder, name));
  const ok = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await sandbox.run(args);
    expect(code, stderr).toBe(0);
    return stdout;
  };
  const names = ['Tim', 'Lily', 'Ben', 'Mia', 'Tom', 'Sue'];
  const story = names.map((name, i) => `One day ${name} saw ${i + 2} birds in the big tree. ${name} was happy. `);
  writeFileSync(text!, story.join('').repeat(8));
  const size = ['--method', 'published', '--rope-dim', '8', '--freqfold', '2'];
  await ok('convert', stories, '--out', model!, ...size, '--calibration-tokens', '128', '--ranks', '1');
  const setting = ['--latent-groups', '2', '--sinks', '1', '--overlap', '2'];
  const calibration = ['--calibration', text!, '--calibration-tokens', '128'];
  const written = await ok('rotate', model!, '--out', fits!, ...setting, '--window', '8', ...calibration);
  expect(written).toContain('tpla_fit_g2_w8_s1_o2.safetensors: 5 layers fitted on 128 tokens');
  const scored = ['eval', 'ppl', '--model', model!, '--text', text!, '--scheme', 'tpla', '--ranks', '2', '--json'];
  const piece = ['--window', '64', '--decode-from', '32', '--max-windows', '1', '--corrections', fits!];
  const report: unknown = JSON.parse(await ok(...scored, ...setting, ...piece, '--recent-window', '8'));
  expect(report).toMatchObject({ corrections: fits, overlap: 2, exactTokens: { sinks: 1, window: 8 } });
  const kl = ['eval', 'kl', ...scored.slice(2), ...setting, ...piece, '--recent-window', '8'];
  expect(JSON.parse(await ok(...kl))).toMatchObject({ positions: 32, referenceScheme: 'mla', corrections: fits });
  const other = await sandbox.run([...scored, ...setting, ...piece, '--recent-window', '9']);
  expect(other.code).toBe(2);
  expect(other.stderr).toContain('tpla_fit_g2_w9_s1_o2.safetensors is not there; run tpla rotate');
}, 120_000);

test('a model that keeps tokens of its own is corrected for those, and refuses others', async () => {
  using sandbox = new Sandbox();
  const [model, fits, text] = ['model', 'fits', 'text'].map((name) => join(sandbox.folder, name));
  writeFileSync(text!, 'A green frog sat on a wet stone and looked at the moon. Nobody else was awake. '.repeat(30));
  const calibration = ['--calibration', text!, '--calibration-tokens', '256'];
  const size = ['--rope-dim', '8', '--kv-rank', '24', '--keep-window', '8', '--keep-sinks', '2'];
  const made = await sandbox.run(['convert', stories, '--out', model!, ...size, ...calibration, '--ranks', '1']);
  expect(made.code, made.stderr).toBe(0);
  expect(made.stdout).toContain("the first 2 and last 8 tokens of a sequence keep the source's 64 numbers");
  const written = await sandbox.run(['rotate', model!, '--out', fits!, ...calibration]);
  expect(written.code, written.stderr).toBe(0);
  expect(written.stdout).toContain('tpla_fit_g2_w8_s2.safetensors: 5 layers fitted on 256 tokens');
  expect(written.stdout).not.toContain('--window');
  const scored = ['eval', 'ppl', '--model', model!, '--text', text!, '--scheme', 'tpla', '--ranks', '2', '--json'];
  const piece = ['--window', '64', '--decode-from', '32', '--max-windows', '1', '--corrections', fits!];
  const { code, stdout, stderr } = await sandbox.run([...scored, ...piece]);
  expect(code, stderr).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ corrections: fits, exactTokens: { sinks: 2, window: 8 } });
  const other = await sandbox.run([...scored, ...piece, '--recent-window', '9']);
  expect(other.code).toBe(2);
  expect(other.stderr).toContain('converted for a window of 8 and 2 sinks, got 9');
}, 120_000);
