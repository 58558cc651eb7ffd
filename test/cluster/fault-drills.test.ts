/** Ranks that die, freeze or send damaged frames while text is generated: nothing is lost, nothing is wrong, nothing is left. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { ClusterConfig } from '../../config/cluster.ts';
import { loadClusterConfig, type ClusterFlags } from '../../config/load.ts';
import { runDrill } from '../../coordinator/faults/drill.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { convertExactly } from '../helpers/convert-tiny.ts';
import { goldenFolder } from '../helpers/golden.ts';
import { rankProcesses, Sandbox } from '../helpers/program.ts';

const model = join(goldenFolder, 'stories260K');
let sandbox: Sandbox;
let checkpoint: Checkpoint;
const temporaryBefore = process.env['TMPDIR'];
beforeEach(async () => {
  sandbox = new Sandbox();
  process.env['TMPDIR'] = sandbox.folder;
  checkpoint = await openCheckpoint(model);
});
afterEach(async () => {
  if (temporaryBefore === undefined) delete process.env['TMPDIR'];
  else process.env['TMPDIR'] = temporaryBefore;
  await checkpoint[Symbol.asyncDispose]();
  expect(rankProcesses(sandbox.folder).size).toBe(0);
  expect(sandbox.leftovers()).toEqual([]);
  // Segments of clusters that other tests start have a name for a moment.
  await expect.poll(segments).toEqual([]);
  sandbox[Symbol.dispose]();
});

function configOf(flags: ClusterFlags): Promise<ClusterConfig> {
  return loadClusterConfig({ flags: { model, ranks: 2, context: 256, ...flags } });
}

describe.each(['auto', 'zeromq'])('a drill over %s', (transport) => {
  test('loses no token and gives no wrong one', async () => {
    const onSockets = transport === 'zeromq';
    const { faults, answers, lostTokens, wrongTokens, firstError } = await runDrill({
      checkpoint,
      config: await configOf({ ranks: 3, transport }),
      drills: onSockets ? ['garble', 'kill', 'slow', 'cut'] : ['kill', 'freeze', 'kill'],
      count: onSockets ? 4 : 3,
      seconds: 600,
      prompts: ['Once upon a time', 'The little dog', 'Tom and Lily went to the park.'],
      maxTokens: 24,
      seed: 7,
      log: () => undefined,
      signal: new AbortController().signal,
    });
    expect({ lostTokens, wrongTokens, firstError }).toEqual({ lostTokens: 0, wrongTokens: 0, firstError: null });
    expect(answers).toBeGreaterThanOrEqual(3);
    const causes = faults.map(({ cause }) => cause?.split('\n')[0] ?? 'none');
    if (onSockets) {
      expect(causes[0]).toMatch(/^rank \d: a frame from rank \d for .* was damaged on the way/);
      expect(causes[2]).toBe('none');
      expect(causes[3]).toMatch(/^rank \d: nothing from rank \d for .* in 2000 ms/);
    } else expect(causes[1]).toMatch(/^rank \d \(process \d+\): stopped answering heartbeats/);
    expect(causes[onSockets ? 1 : 0]).toMatch(/^rank \d \(process \d+\) was killed by SIGKILL/);
  });
});

describe.each(['tpla', 'mla', 'dcp'])('a drill under scheme %s', (scheme) => {
  test('loses no token and gives no wrong one', async () => {
    const folder = join(sandbox.folder, 'cache', 'latent');
    await convertExactly(model, folder);
    await using converted = await openCheckpoint(folder);
    const { faults, tokens, lostTokens, wrongTokens, firstError } = await runDrill({
      checkpoint: converted,
      config: await configOf({ model: folder, scheme }),
      drills: ['kill', 'freeze'],
      count: 2,
      seconds: 600,
      prompts: ['Once upon a time', 'The little dog'],
      maxTokens: 16,
      seed: 3,
      log: () => undefined,
      signal: new AbortController().signal,
    });
    expect({ lostTokens, wrongTokens, firstError }).toEqual({ lostTokens: 0, wrongTokens: 0, firstError: null });
    expect(faults.map(({ detectedMs }) => detectedMs !== undefined)).toEqual([true, true]);
    expect(tokens).toBeGreaterThanOrEqual(32);
  });
});

test('a drill that is interrupted ends as any command does', async () => {
  const args = [
    'faults',
    '--model',
    model,
    '--context',
    '256',
    '--drill',
    'slow',
    '--seconds',
    '600',
    '--count',
    '9999',
  ];
  const running = sandbox.start(args);
  await new Promise<void>((resolve) => {
    running.child.stderr?.on('data', (text: string) => text.includes('drill: slow') && resolve());
  });
  running.child.kill('SIGTERM');
  const { code, stderr } = await running.finished;
  expect(code).toBe(143);
  expect(stderr).not.toMatch(/lost:|this is a bug/);
});

function segments(): string[] {
  return existsSync('/dev/shm') ? readdirSync('/dev/shm').filter((name) => name.startsWith('tpla-')) : [];
}
