/** Ranks started by what people already run: ssh (a stand-in on PATH), mpirun where it is installed, variables otherwise. */
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Sandbox } from '../helpers/program.ts';
import { goldenFolder } from '../helpers/golden.ts';
import { freePort, startWorker } from '../helpers/remote.ts';

const model = join(goldenFolder, 'stories260K');
const program = fileURLToPath(new URL('../../dist/coordinator/main.js', import.meta.url));
const hasMpirun = spawnSync('mpirun', ['--version']).status === 0;
let sandbox: Sandbox;
let file: string;
let bind: string;
beforeEach(async () => {
  sandbox = new Sandbox();
  mkdirSync(join(sandbox.folder, 'cache'));
  file = join(sandbox.folder, 'cache', 'cluster.json');
  bind = `tcp://127.0.0.1:${await freePort()}`;
});
afterEach(() => {
  expect(sandbox.leftovers()).toEqual([]);
  sandbox[Symbol.dispose]();
});

function writeCluster(hosts: readonly object[], more: object = {}): void {
  const cluster = {
    model,
    ranks: hosts,
    coordinator: { bind, joinSeconds: 30 },
    cache: { contextTokens: 256 },
    ...more,
  };
  writeFileSync(file, JSON.stringify(cluster));
}

async function generated(env: Record<string, string> = {}): Promise<unknown> {
  const args = ['run', '--config', file, '--max-tokens', '4', '--json', 'Once upon a time'];
  const { code, stdout, stderr } = await sandbox.run(args, { env });
  expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
  const document = JSON.parse(stdout) as { ranks: number; text: string; perRank: { transport: string }[] };
  const { ranks, text, perRank } = document;
  return { ranks, text, transports: perRank.map((rank) => rank.transport) };
}

const answer = {
  ranks: 2,
  text: expect.stringMatching(/^,? there was/),
  transports: ['shared memory', 'shared memory'],
};

test('ssh: the coordinator starts the rank, hands it the keys, and leaves no process', async () => {
  const bin = join(sandbox.folder, 'cache', 'bin');
  const log = join(sandbox.folder, 'cache', 'ssh.log');
  mkdirSync(bin);
  // What sshd does with the command: a shell runs it, its stdin is the connection.
  writeFileSync(
    join(bin, 'ssh'),
    `#!/bin/sh\necho "$@" > ${log}\nfor last; do :; done\nexec env PATH=${bin}:$PATH sh -c "$last"\n`,
  );
  writeFileSync(join(bin, 'my tpla'), `#!/bin/sh\nexec ${process.execPath} ${program} "$@"\n`);
  for (const name of ['ssh', 'my tpla']) chmodSync(join(bin, name), 0o755);
  const keys = join(sandbox.folder, 'cache', 'keys');
  expect((await sandbox.run(['keys', '--out', keys])).code).toBe(0);
  writeCluster([{ host: 'local' }, { host: 'ssh://user@localhost:2222', program: 'my tpla' }]);
  expect(await generated({ PATH: `${bin}:${process.env['PATH']}` })).toEqual(answer);
  const called = spawnSync('cat', [log], { encoding: 'utf8' }).stdout;
  expect(called).toMatch(/-o BatchMode=yes .* -p 2222 -- user@localhost exec 'my tpla' 'worker' '--attached' '--join'/);
  // The secret key travels over stdin.
  expect(called).not.toContain('secretKey');
  expect(spawnSync('pgrep', ['-f', bind], { encoding: 'utf8' }).stdout).toBe('');
});

test('ssh that fails is named, with what it printed', async () => {
  const bin = join(sandbox.folder, 'cache', 'bin');
  mkdirSync(bin);
  writeFileSync(join(bin, 'ssh'), '#!/bin/sh\necho "Permission denied (publickey)." >&2\nexit 255\n', { mode: 0o755 });
  writeCluster([{ host: 'ssh://localhost' }]);
  const { code, stderr } = await sandbox.run(['run', '--config', file, 'x'], {
    env: { PATH: `${bin}:${process.env['PATH']}` },
  });
  expect(stderr).toMatch(
    /rank 0.* exited with code 255 while starting; it printed last: Permission denied \(publickey\)/,
  );
  expect(code).toBe(3);
});

test.skipIf(!hasMpirun).each([
  ['', 'auto', 'shared memory'],
  [', sums over MPI', 'mpi', 'mpi'],
])('mpirun -n 2 tpla worker --from-env%s (skipped where OpenMPI is not installed)', async (_, transport, carrier) => {
  writeCluster([{ host: 'join' }, { host: 'join' }], { collective: { transport } });
  const mpi = spawn(
    'mpirun',
    [
      '--allow-run-as-root',
      '--oversubscribe',
      '-n',
      '2',
      process.execPath,
      program,
      'worker',
      '--from-env',
      '--join',
      bind,
      '--model',
      model,
    ],
    { stdio: 'ignore', env: { ...process.env, TMPDIR: join(sandbox.folder, 'cache') } },
  );
  const ended = new Promise((resolve) => mpi.once('close', resolve));
  try {
    expect(await generated()).toEqual({ ...answer, transports: [carrier, carrier] });
  } finally {
    mpi.kill('SIGTERM');
    await ended;
  }
});

test('RANK and WORLD_SIZE: ranks get what they ask for, and another size is refused', async () => {
  writeCluster([{ host: 'join' }, { host: 'join' }]);
  const [, host, port] = /^tcp:\/\/(.*):(.*)$/.exec(bind)!;
  const env = { WORLD_SIZE: '2', MASTER_ADDR: host!, MASTER_PORT: port! };
  const args = ['--from-env', '--model', model];
  await using second = startWorker(sandbox, args, { ...env, RANK: '1' });
  await using first = startWorker(sandbox, args, { ...env, RANK: '0' });
  await using odd = startWorker(sandbox, args, { ...env, RANK: '1', WORLD_SIZE: '3' });
  expect(await generated()).toEqual(answer);
  await first.said('rank 0 of 2');
  await second.said('rank 1 of 2');
  await odd.said('waiting for the coordinator');
});
