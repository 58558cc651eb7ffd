/** Cluster files: defaults, flags over the file, and every mistake at once with file, line and key. */
import { readdirSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ClusterConfig } from '../../../config/cluster.ts';
import { loadClusterConfig, type ClusterFlags } from '../../../config/load.ts';
import { ConfigError } from '../../../config/errors.ts';

const examples = fileURLToPath(new URL('../../../config/examples', import.meta.url));
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'tpla-load-test-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function load(text: string, flags: ClusterFlags = {}, name = 'cluster.yaml'): Promise<ClusterConfig> {
  const file = join(folder, name);
  await writeFile(file, text);
  return loadClusterConfig({ file, flags });
}

/** The message of a refusal, the temporary folder taken out. */
async function refusal(text: string, flags: ClusterFlags = {}): Promise<string> {
  const error: unknown = await load(text, flags).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(ConfigError);
  return (error as ConfigError).message.replaceAll(join(folder, 'cluster.yaml'), 'cluster.yaml');
}

const minimal = 'model: default\nranks: [{}, {}]\n';

describe('what is accepted', () => {
  test('model and ranks are enough; everything else has a default', async () => {
    expect(await load(minimal)).toEqual({
      model: 'default',
      attention: {
        scheme: 'auto',
        latentGroups: 0,
        reparameterization: 'weighted',
        corrections: '',
        overlap: 0,
        prefill: 'exact',
        norm: 'exact',
      },
      cache: { type: 'f16', contextTokens: 0, slots: 0 },
      compute: { backend: 'ggml', threads: 1, weights: 'keep', expertSharding: 'columns', maxStepTokens: 256 },
      collective: { transport: 'auto', timeoutMs: 10_000, payload: 'f32' },
      ranks: [
        { host: 'local', model: '', program: 'tpla', device: '', share: 1 },
        { host: 'local', model: '', program: 'tpla', device: '', share: 1 },
      ],
      coordinator: { bind: 'auto', joinSeconds: 300 },
      security: { curve: 'auto', keys: join(folder, 'keys'), allowNoKeys: false },
      api: { listen: '127.0.0.1:8080', apiKeyEnv: 'TPLA_API_KEY', corsOrigin: '' },
      faults: { heartbeatMs: 200, restarts: 5, backoffMs: 250, rejoinMs: 10_000, allowFewerRanks: false },
    });
  });

  test('JSON is read as well', async () => {
    const config = await load('{"model": "default", "ranks": [{"host": "local", "share": 0.5}]}', {}, 'cluster.json');
    expect(config.ranks).toEqual([{ host: 'local', model: '', program: 'tpla', device: '', share: 0.5 }]);
  });

  test.each(readdirSync(examples))('the example %s', async (name) => {
    expect((await loadClusterConfig({ file: join(examples, name), flags: {} })).ranks.length).toBeGreaterThan(1);
  });

  test('a model path is relative to the file, unless a flag gives it', async () => {
    const text = 'model: ./m\nranks: [{}]\n';
    expect((await load(text)).model).toBe(join(folder, 'm'));
    expect((await load(text, { model: './m' })).model).toBe('./m');
  });

  test('the result is frozen, also inside', async () => {
    const config = await load(minimal);
    expect(Object.isFrozen(config) && Object.isFrozen(config.cache) && Object.isFrozen(config.ranks[0])).toBe(true);
  });
});

describe('flags', () => {
  test('override the file', async () => {
    const config = await load(`${minimal}attention: { scheme: mla }\ncache: { type: f16, slots: 3 }\n`, {
      scheme: 'tpla',
      latentGroups: 2,
      cacheType: 'f32',
      context: 100,
      threads: 2,
      backend: 'gpujs',
      weights: 'q8_0',
      transport: 'zeromq',
      reparam: 'pca',
      prefill: 'sliced',
      device: 'cpu',
    });
    expect(config).toMatchObject({
      attention: { scheme: 'tpla', latentGroups: 2, reparameterization: 'pca', prefill: 'sliced' },
      cache: { type: 'f32', contextTokens: 100, slots: 3 },
      compute: { backend: 'gpujs', threads: 2, weights: 'q8_0' },
      collective: { transport: 'zeromq' },
      ranks: [{ device: 'cpu' }, { device: 'cpu' }],
    });
  });

  test('a payload is refused where sums do not go over sockets', async () => {
    const text = 'model: default\nranks: [{}, {}]\ncollective: { payload: q8_0 }\n';
    expect((await load(text, { transport: 'zeromq' })).collective.payload).toBe('q8_0');
    expect(await refusal(text, { transport: 'shm' })).toMatch(
      /collective\.payload: q8_0 is for sums over ZeroMQ between hosts, and transport shm sends none; leave it out, or use transport auto or zeromq$/,
    );
    expect(await refusal(text.replace('q8_0', 'f8'))).toMatch(/collective\.payload: expected f32, f16, q8_0, got "f8"/);
  });

  test('--ranks keeps the first ranks of the file and adds local ones', async () => {
    const text = 'model: default\nranks: [{ share: 3 }, { share: 2 }]\n';
    expect((await load(text, { ranks: 1 })).ranks.map((rank) => rank.share)).toEqual([3]);
    expect((await load(text, { ranks: 3 })).ranks.map((rank) => rank.share)).toEqual([3, 2, 1]);
  });

  test('without a file there are two ranks', async () => {
    expect((await loadClusterConfig({ flags: { model: 'default' } })).ranks).toHaveLength(2);
  });

  test.each<[ClusterFlags, string]>([
    [
      { scheme: 'tpal' },
      '--scheme: expected auto, gqa, mla, tpla, tpla-exact, dcp, gla, got "tpal"; did you mean tpla?',
    ],
    [
      { transport: 'mpi' },
      '--transport: mpi carries sums between ranks that mpirun or srun started: write `host: join` for every rank and start `tpla worker --from-env` under it; see docs/deploy.md',
    ],
    [{ context: 1.5 }, '--context: expected a whole number, got 1.5'],
    [{ cacheType: 'f8' }, '--cache-type: expected f16, f32, q8_0, got "f8"'],
    [{ ranks: 0 }, '--ranks: expected a whole number from 1 to 64, got 0'],
    [{ ranks: 65 }, '--ranks: expected a whole number from 1 to 64, got 65'],
    [{ window: 5000 }, '--window: expected at most 4096, got 5000'],
  ])('%j is refused by the flag that made the mistake', async (flags, message) => {
    expect(await refusal(minimal, flags)).toBe(message);
  });
});

describe('mistakes', () => {
  test('all are reported at once, in the order of the file', async () => {
    const text = [
      'modle: x',
      'attention:',
      '  shceme: tpla',
      '  scheme: tlpa',
      '  latentGroups: two',
      'cache:',
      '  slots: 0',
      'ranks:',
      '  - host: local',
      '    devic: x',
      '  - host: ssh://-oProxyCommand=x',
      '  - host: elsewhere',
    ].join('\n');
    expect((await refusal(text)).split('\n')).toEqual([
      'cluster.yaml:1, model: missing; expected a text',
      'cluster.yaml:1, modle: unknown key; did you mean model?',
      'cluster.yaml:3, attention.shceme: unknown key; did you mean scheme?',
      'cluster.yaml:4, attention.scheme: expected auto, gqa, mla, tpla, tpla-exact, dcp, gla, got "tlpa"; did you mean tpla?',
      'cluster.yaml:5, attention.latentGroups: expected a number, got "two"',
      'cluster.yaml:7, cache.slots: expected at least 1, got 0',
      'cluster.yaml:10, ranks.0.devic: unknown key; did you mean device?',
      'cluster.yaml:11, ranks.1.host: expected local, join or ssh://user@host, got "ssh://-oProxyCommand=x"',
      'cluster.yaml:12, ranks.2.host: expected local, join or ssh://user@host, got "elsewhere"',
    ]);
  });

  test.each([
    ['', 'cluster.yaml:1, model: missing; expected a text\ncluster.yaml:1, ranks: missing; expected a list'],
    ['just words', 'cluster.yaml:1: expected keys such as `model:` and `ranks:`, got "just words"'],
    [`${minimal}cache: 3\n`, 'cluster.yaml:3, cache: expected keys with values, got 3'],
    [`${minimal}ranks: []\n`, 'cluster.yaml:3: not valid YAML: Map keys must be unique'],
    ['model: default\nranks: []\n', 'cluster.yaml:2, ranks: expected at least 1 entries, got 0 entries'],
    [
      `${minimal}coordinator: { bind: 'tcp://0.0.0.0:7070' }\n`,
      'cluster.yaml:3, coordinator.bind: tcp://0.0.0.0:7070: name the address by which the other machines reach this one',
    ],
    [
      `${minimal}coordinator: { bind: 'tcp://127.0.0.1:70700' }\n`,
      'cluster.yaml:3, coordinator.bind: expected auto or tcp://ADDRESS:PORT, got "tcp://127.0.0.1:70700"',
    ],
    [`${minimal}security: { curve: maybe }\n`, 'cluster.yaml:3, security.curve: expected auto, on, off, got "maybe"'],
  ])('%j', async (text, message) => {
    expect(await refusal(text)).toBe(message);
  });

  test('a file that is not there', async () => {
    await expect(loadClusterConfig({ file: join(folder, 'none.yaml'), flags: {} })).rejects.toThrow(
      /^cluster file .*none\.yaml: cannot be read \(ENOENT/,
    );
  });
});
