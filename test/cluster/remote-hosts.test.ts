/**
 * Two machines, as far as one can make them: network namespaces joined by a cable, the coordinator in one, a rank in the
 * other. Skipped where this user may not make namespaces (`ip netns` asks for root) or there is no `ip`.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { writeMachineKeys } from '../../collective/key-files.ts';
import { convertExactly } from '../helpers/convert-tiny.ts';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox } from '../helpers/program.ts';

const model = join(goldenFolder, 'stories260K');
const id = process.pid;
const [here, there] = [`tpla-a-${id}`, `tpla-b-${id}`];
const [hereAddress, thereAddress] = ['198.51.100.1', '198.51.100.2'];

function ip(...args: string[]): boolean {
  return spawnSync('ip', args).status === 0;
}

/** Both namespaces and the cable between them; false: not allowed here. */
function makeHosts(): boolean {
  const link = [`va${id}`, `vb${id}`] as const;
  return (
    ip('netns', 'add', here) &&
    ip('netns', 'add', there) &&
    ip('link', 'add', link[0], 'netns', here, 'type', 'veth', 'peer', 'name', link[1], 'netns', there) &&
    ip('-n', here, 'address', 'add', `${hereAddress}/24`, 'dev', link[0]) &&
    ip('-n', there, 'address', 'add', `${thereAddress}/24`, 'dev', link[1]) &&
    ip('-n', here, 'link', 'set', link[0], 'up') &&
    ip('-n', there, 'link', 'set', link[1], 'up') &&
    ip('-n', here, 'link', 'set', 'lo', 'up') &&
    ip('-n', there, 'link', 'set', 'lo', 'up')
  );
}

function removeHosts(): void {
  for (const name of [here, there]) ip('netns', 'delete', name);
}

const isAllowed = process.platform === 'linux' && makeHosts();
removeHosts();

let sandbox: Sandbox;
beforeEach(() => {
  sandbox = new Sandbox();
  mkdirSync(join(sandbox.folder, 'cache'));
  makeHosts();
});
afterEach(() => {
  removeHosts();
  expect(sandbox.leftovers()).toEqual([]);
  sandbox[Symbol.dispose]();
});

/** The body of a request made in the coordinator's namespace. */
function request(path: string, body?: object): Record<string, unknown> {
  const script = `const [url, body] = process.argv.slice(1);
    const options = body ? { method: 'POST', body, headers: { 'content-type': 'application/json' } } : {};
    console.log(await (await fetch(url, options)).text())`;
  const url = `http://127.0.0.1:8080${path}`;
  const args = ['netns', 'exec', here, process.execPath, '--input-type=module', '-e', script, url];
  const { stdout, stderr } = spawnSync('ip', body === undefined ? args : [...args, JSON.stringify(body)], {
    encoding: 'utf8',
  });
  if (stdout === '') throw new Error(stderr);
  return JSON.parse(stdout) as Record<string, unknown>;
}

test.skipIf(!isAllowed)(
  'a rank on another host gives the tokens of a local run, and does so again after it was killed',
  async () => {
    const keys = join(sandbox.folder, 'cache', 'keys');
    const key = await writeMachineKeys(keys, 'there');
    const bind = `tcp://${hereAddress}:7070`;
    const file = join(sandbox.folder, 'cache', 'cluster.json');
    const cluster = {
      model,
      ranks: [{ host: 'local' }, { host: 'join' }],
      coordinator: { bind },
      security: { keys },
    };
    writeFileSync(file, JSON.stringify(cluster));
    const worker = sandbox.start(['worker', '--join', bind, '--model', model, '--keys', key], {
      netns: there,
      env: { TPLA_HOST: 'there' },
    });
    const serve = sandbox.start(['serve', file, '--json'], { netns: here });
    try {
      await serve.printed('"ready":true');
      const asked = { prompt: 'Once upon a time', max_tokens: 12, temperature: 0 };
      const textOf = (): unknown => (request('/v1/completions', asked)['choices'] as { text: string }[])[0]?.text;
      const local = await sandbox.run([
        'run',
        '--model',
        model,
        '--ranks',
        '2',
        '--max-tokens',
        '12',
        '--json',
        asked.prompt,
      ]);
      const { text } = JSON.parse(local.stdout) as { text: string };
      expect(textOf()).toBe(text);
      const ranksOf = (): { pid: number; restarts: number; state: string }[] => request('/health')['ranks'] as never;
      process.kill(ranksOf()[1]!.pid, 'SIGKILL');
      await expect.poll(() => ranksOf()[1], { timeout: 20_000 }).toMatchObject({ restarts: 1, state: 'ok' });
      expect(textOf()).toBe(text);
    } finally {
      for (const { child } of [serve, worker]) child.kill('SIGTERM');
      expect((await serve.finished).code).toBe(0);
      expect((await worker.finished).code).toBe(0);
    }
  },
  60_000,
);

test.skipIf(!isAllowed).each(['tpla', 'dcp'])(
  'a drill with a rank on another host, scheme %s: no token is lost or wrong',
  async (scheme) => {
    const latent = join(sandbox.folder, 'cache', 'latent');
    await convertExactly(model, latent);
    const keys = join(sandbox.folder, 'cache', 'keys');
    const key = await writeMachineKeys(keys, 'there');
    const bind = `tcp://${hereAddress}:7070`;
    const file = join(sandbox.folder, 'cache', 'cluster.json');
    const ranks = [{ host: 'join' }, { host: 'join' }];
    const cluster = { model: latent, ranks, coordinator: { bind }, security: { keys } };
    writeFileSync(file, JSON.stringify(cluster));
    const args = ['worker', '--join', bind, '--model', latent, '--keys', key];
    const workers = ['b', 'c'].map((host) => sandbox.start(args, { netns: there, env: { TPLA_HOST: host } }));
    try {
      const drill = ['faults', '--config', file, '--scheme', scheme, '--context', '256', '--drill', 'kill,freeze'];
      const { code, stdout, stderr } = await sandbox.run([...drill, '--count', '2', '--max-tokens', '16', '--json'], {
        netns: here,
      });
      expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
      const result = JSON.parse(stdout) as { faults: object[]; lostTokens: number; wrongTokens: number };
      expect(result).toMatchObject({ lostTokens: 0, wrongTokens: 0 });
      const fault = { isRemote: true, detectedMs: expect.any(Number), recoveredMs: expect.any(Number) };
      expect(result.faults).toMatchObject([
        { drill: 'kill', ...fault },
        { drill: 'freeze', ...fault },
      ]);
    } finally {
      for (const { child } of workers) child.kill('SIGTERM');
      for (const { finished } of workers) expect((await finished).code).toBe(0);
    }
  },
  60_000,
);
