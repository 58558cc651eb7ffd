/**
 * The launch files of config/deploy/, as near as they run without their engines: their own command
 * lines start real processes here, with the paths and addresses of this machine. docs/deploy.md says what was run for real.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { parseAllDocuments } from 'yaml';
import { z } from 'zod';
import { goldenFolder } from '../helpers/golden.ts';
import { Sandbox, type Running } from '../helpers/program.ts';
import { freePort } from '../helpers/remote.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
const deploy = join(root, 'config', 'deploy');
const program = join(root, 'dist', 'coordinator', 'main.js');
const model = join(goldenFolder, 'stories260K');

let sandbox: Sandbox;
let keys: string;
let ports: { control: number; http: number };
beforeEach(async () => {
  sandbox = new Sandbox();
  mkdirSync(join(sandbox.folder, 'cache'));
  keys = join(sandbox.folder, 'cache', 'keys');
  ports = { control: await freePort(), http: await freePort() };
  expect((await sandbox.run(['keys', '--out', keys])).code).toBe(0);
});
afterEach(() => {
  expect(sandbox.leftovers()).toEqual([]);
  sandbox[Symbol.dispose]();
});

const key = 'secret';

/** What two ranks of stories260K say to this prompt, wherever they run. */
async function answer(): Promise<string> {
  const response = await fetch(`http://127.0.0.1:${ports.http}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${key}` },
    body: JSON.stringify({ prompt: 'Once upon a time', max_tokens: 4, temperature: 0 }),
  });
  const { choices } = z.object({ choices: z.array(z.object({ text: z.string() })) }).parse(await response.json());
  return choices[0]?.text ?? '';
}

/** Starts programs, waits until the first is ready, asks it, ends all. */
async function served([coordinator, ...ranks]: Running[]): Promise<string> {
  try {
    await coordinator!.printed('ready: ');
    return await answer();
  } finally {
    for (const each of [coordinator!, ...ranks]) each.child.kill('SIGTERM');
    for (const each of [coordinator!, ...ranks]) await each.finished;
  }
}

const text = (name: string): string => readFileSync(join(deploy, name), 'utf8');

describe('kubernetes.yaml', () => {
  const container = z.object({
    args: z.array(z.string()),
    env: z.array(z.looseObject({ name: z.string(), value: z.string().optional() })),
    volumeMounts: z.array(z.object({ name: z.string() })),
  });
  const document = z.looseObject({
    kind: z.string(),
    metadata: z.object({ name: z.string() }),
    data: z.record(z.string(), z.string()).optional(),
    spec: z
      .looseObject({
        completions: z.number().optional(),
        selector: z.unknown().optional(),
        template: z
          .looseObject({
            metadata: z.object({ labels: z.record(z.string(), z.string()) }),
            spec: z.looseObject({
              containers: z.array(container).length(1),
              volumes: z.array(z.looseObject({ name: z.string(), secret: z.unknown().optional() })),
            }),
          })
          .optional(),
      })
      .optional(),
  });
  // As Kubernetes reads it: YAML 1.1, where 0440 is octal.
  const documents = parseAllDocuments(text('kubernetes.yaml'), { version: '1.1' }).map((each) => {
    expect(each.errors).toEqual([]);
    return document.parse(each.toJS());
  });
  const of = (kind: string, name: string) => {
    const found = documents.find((each) => each.kind === kind && each.metadata.name === name);
    expect(found, `${kind} ${name}`).toBeDefined();
    return found!;
  };
  const podOf = (kind: string, name: string) => of(kind, name).spec!.template!;

  test('its parts name each other, and the key file is as private as tpla asks', () => {
    const coordinator = podOf('Deployment', 'tpla');
    for (const service of ['tpla', 'tpla-control'])
      expect(of('Service', service).spec!.selector).toEqual(coordinator.metadata.labels);
    expect(of('Service', 'tpla-control').spec).toMatchObject({ publishNotReadyAddresses: true });
    for (const pod of [coordinator, podOf('Job', 'tpla-ranks')]) {
      const mounted = pod.spec.containers[0]!.volumeMounts.map(({ name }) => name);
      expect(pod.spec.volumes.map(({ name }) => name)).toEqual(mounted);
      const secret = pod.spec.volumes.find(({ name }) => name === 'keys')?.secret;
      expect(secret).toMatchObject({ defaultMode: 0o440 });
    }
  });

  test('its command lines make a cluster that answers', { timeout: 60_000 }, async () => {
    const here = (arg: string): string =>
      arg
        .replace('/etc/tpla/', `${sandbox.folder}/cache/`)
        .replace('/keys/', `${keys}/`)
        .replace('/models/smollm2-mla', model)
        .replace('$(POD_IP):7070', `127.0.0.1:${ports.control}`)
        .replace('0.0.0.0:8080', `0.0.0.0:${ports.http}`)
        .replace('tpla-control:7070', `127.0.0.1:${ports.control}`);
    for (const [name, content] of Object.entries(of('ConfigMap', 'tpla').data!))
      writeFileSync(join(sandbox.folder, 'cache', name), here(content));
    const [coordinator] = podOf('Deployment', 'tpla').spec.containers;
    const [rank] = podOf('Job', 'tpla-ranks').spec.containers;
    const env = Object.fromEntries(rank!.env.map(({ name, value }) => [name, here(value ?? '')]));
    const { completions } = of('Job', 'tpla-ranks').spec!;
    expect(String(completions)).toBe(env['WORLD_SIZE']);
    const running = [
      sandbox.start(coordinator!.args.map(here), { env: { TPLA_API_KEY: key } }),
      ...Array.from({ length: completions! }, (_, index) =>
        sandbox.start(rank!.args.map(here), { env: { ...env, JOB_COMPLETION_INDEX: String(index) } }),
      ),
    ];
    expect(await served(running)).toMatch(/^,? there was/);
  });
});

test('slurm.sh, with an srun that starts its tasks here', { timeout: 60_000 }, async () => {
  const bin = join(sandbox.folder, 'cache', 'bin');
  mkdirSync(bin);
  writeFileSync(join(bin, 'tpla'), `#!/bin/sh\nexec ${process.execPath} ${program} "$@"\n`);
  // The variables that Slurm 22.05 gives to two tasks of a step; it ends its tasks when it is told to end.
  writeFileSync(
    join(bin, 'srun'),
    `#!/bin/sh
export SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 SLURM_LAUNCH_NODE_IPADDR=127.0.0.1
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@" & second=$!
trap 'kill $first $second' TERM
wait $first; wait $first; wait $second
`,
  );
  for (const name of ['tpla', 'srun']) chmodSync(join(bin, name), 0o755);
  const cluster = join(sandbox.folder, 'cache', 'cluster.yaml');
  writeFileSync(
    cluster,
    `${readFileSync(join(root, 'config/examples/launched-ranks.yaml'), 'utf8')}api: { listen: '127.0.0.1:${ports.http}' }\n`,
  );
  const job = spawn('sh', [join(deploy, 'slurm.sh')], {
    // A process group, as a job is one.
    detached: true,
    stdio: ['ignore', 'pipe', 'ignore'],
    env: {
      PATH: `${bin}:${process.env['PATH']}`,
      TMPDIR: sandbox.folder,
      MODEL: model,
      KEYS: keys,
      CLUSTER: cluster,
      PORT: String(ports.control),
      ADDRESS: '127.0.0.1',
    },
  });
  const ended = new Promise((resolve) => job.once('close', resolve));
  try {
    await printed(job, 'ready: ');
    expect(await answer()).toMatch(/^,? there was/);
  } finally {
    process.kill(-job.pid!, 'SIGTERM');
    await ended;
  }
});

describe('systemd units', () => {
  const execOf = (name: string): string[] =>
    /^ExecStart=\/usr\/local\/bin\/tpla (.*)$/m.exec(text(name))![1]!.split(' ');

  test('their command lines make a cluster that answers', { timeout: 60_000 }, async () => {
    const cluster = join(sandbox.folder, 'cache', 'cluster.yaml');
    const bind = `tcp://127.0.0.1:${ports.control}`;
    writeFileSync(
      cluster,
      JSON.stringify({
        model,
        ranks: [{ host: 'local' }, { host: 'join' }],
        coordinator: { bind },
        api: { listen: `127.0.0.1:${ports.http}` },
      }),
    );
    const here = (arg: string): string =>
      ({
        '/etc/tpla/cluster.yaml': cluster,
        '/etc/tpla/cluster.key': join(keys, 'cluster.key'),
        '/srv/models/smollm2-mla': model,
        'tcp://192.0.2.1:7070': bind,
      })[arg] ?? arg;
    const running = ['tpla-serve.service', 'tpla-worker.service'].map((name) => sandbox.start(execOf(name).map(here)));
    expect(await served(running)).toMatch(/^,? there was/);
  });

  const hasAnalyze = spawnSync('systemd-analyze', ['--version']).status === 0;
  test.skipIf(!hasAnalyze)('are what systemd-analyze accepts (skipped where it is not installed)', () => {
    for (const name of ['tpla-serve.service', 'tpla-worker.service']) {
      const file = join(sandbox.folder, 'cache', name);
      writeFileSync(file, text(name).replace('/usr/local/bin/tpla', '/bin/true'));
      const { stderr, status } = spawnSync('systemd-analyze', ['verify', file], { encoding: 'utf8' });
      expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    }
  });
});

function printed({ stdout }: ChildProcess, wanted: string): Promise<void> {
  let shown = '';
  return new Promise((resolve, reject) => {
    stdout!.setEncoding('utf8').on('data', (more: string) => {
      shown += more;
      if (shown.includes(wanted)) resolve();
    });
    stdout!.once('end', () => reject(new Error(`ended without ${wanted}: ${shown}`)));
  });
}
