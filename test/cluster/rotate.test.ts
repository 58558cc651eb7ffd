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
  const other = await sandbox.run([...scored, ...setting, ...piece, '--recent-window', '9']);
  expect(other.code).toBe(2);
  expect(other.stderr).toContain('tpla_fit_g2_w9_s1_o2.safetensors is not there; run tpla rotate');
}, 120_000);
