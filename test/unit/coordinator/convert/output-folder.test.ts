import { spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { ConfigError } from '../../../../config/errors.ts';
import { Interruption } from '../../../../coordinator/command-context.ts';
import { makeFolder } from '../../../../coordinator/convert/output-folder.ts';

let sandbox: string;
let out: string;
beforeEach(async () => {
  sandbox = await mkdtemp(join(tmpdir(), 'output-'));
  out = join(sandbox, 'deep', 'out');
});
afterEach(() => rm(sandbox, { recursive: true }));

const fill = (text: string) => async (folder: string) => {
  for (const name of ['config.json', 'model.safetensors']) await writeFile(join(folder, name), text);
  return text.length;
};

it('makes the folder and its parents, and leaves nothing else', async () => {
  expect(await makeFolder(out, false, 'key', fill('one'))).toBe(3);
  expect(await readdir(join(sandbox, 'deep'))).toEqual(['out']);
  expect(await readFile(join(out, 'config.json'), 'utf8')).toBe('one');
});

it('takes an empty folder', async () => {
  await mkdir(out, { recursive: true });
  await makeFolder(out, false, 'key', fill('one'));
  expect(await readdir(out)).toEqual(['config.json', 'model.safetensors']);
});

it('leaves no trace when the maker fails', async () => {
  const failing = makeFolder(out, false, 'key', async (folder) => {
    await fill('one')(folder);
    throw new Error('disk on fire');
  });
  await expect(failing).rejects.toThrow('disk on fire');
  expect(await readdir(join(sandbox, 'deep'))).toEqual([]);
});

it('replaces a checkpoint only when told to', async () => {
  await makeFolder(out, false, 'key', fill('one'));
  await expect(makeFolder(out, false, 'key', fill('two'))).rejects.toThrow(
    `out: ${out} holds 2 files already; name another folder or give --force`,
  );
  await makeFolder(out, true, 'key', fill('two'));
  expect(await readFile(join(out, 'config.json'), 'utf8')).toBe('two');
  expect(await readdir(join(sandbox, 'deep'))).toEqual(['out']);
});

it('never replaces what is no checkpoint', async () => {
  await mkdir(out, { recursive: true });
  await writeFile(join(out, 'thesis.txt'), 'ten years');
  await expect(makeFolder(out, true, 'key', fill('two'))).rejects.toThrow(
    `out: ${out} holds files but no converted checkpoint (config.json and model.safetensors); --force replaces only those`,
  );
  await writeFile(join(sandbox, 'file'), '');
  await expect(makeFolder(join(sandbox, 'file'), true, 'key', fill('two'))).rejects.toThrow(
    'is no folder that can be read',
  );
});

it('says what to do about a full disk and one that must not be written to', async () => {
  const failing = (code: string) =>
    makeFolder(out, false, 'key', async () => {
      throw new ConfigError('cannot write it', { cause: Object.assign(new Error(`${code}: no`), { code }) });
    });
  await expect(failing('ENOSPC')).rejects.toThrow(
    `out: cannot write ${out}: the disk is full; \`tpla convert --dry-run\` says how much is needed. Free some, or name a folder on another disk`,
  );
  await expect(failing('EROFS')).rejects.toThrow('it must not be written to; name a folder of yours (cannot write it)');
  expect(await readdir(join(sandbox, 'deep'))).toEqual([]);
  await writeFile(join(sandbox, 'file'), '');
  await expect(makeFolder(join(sandbox, 'file', 'out'), false, 'key', fill('one'))).rejects.toThrow(ConfigError);
});

it('removes what a killed process left, and nothing of a living one', async () => {
  await mkdir(join(sandbox, 'deep'));
  const ended = spawnSync(process.execPath, ['-e', '']).pid;
  const names = [ended, process.ppid].map((pid) => `.out.part-${hostname()}-${pid}-abcdef`);
  for (const name of names) await mkdir(join(sandbox, 'deep', name, 'scratch'), { recursive: true });
  await makeFolder(out, false, 'key', fill('one'));
  expect(new Set(await readdir(join(sandbox, 'deep')))).toEqual(new Set([names[1], 'out']));
});

it('goes on in the scratch folder of an interrupted maker of the same thing, and of no other', async () => {
  const parts = async () => (await readdir(join(sandbox, 'deep'))).filter((name) => name.startsWith('.out.part-'));
  const interrupted = makeFolder(out, false, 'key', async (folder, scratch) => {
    await writeFile(join(folder, 'half'), '');
    await writeFile(join(scratch, 'state'), 'half done');
    throw new Interruption('SIGINT');
  });
  await expect(interrupted).rejects.toThrow('interrupted by SIGINT');
  const [left] = await parts();
  // As if the maker's process had ended.
  const ended = spawnSync(process.execPath, ['-e', '']).pid;
  const leave = async () =>
    await rename(join(sandbox, 'deep', left!), join(sandbox, 'deep', left!.replace(/-\d+-(.*)$/, `-${ended}-$1`)));
  await leave();
  const found = await makeFolder(out, false, 'key', async (folder, scratch) => {
    expect(await readdir(folder)).toEqual([]);
    return await readFile(join(scratch, 'state'), 'utf8');
  });
  expect(found).toBe('half done');
  expect(await readdir(join(sandbox, 'deep'))).toEqual(['out']);

  await rm(out, { recursive: true });
  await mkdir(join(sandbox, 'deep', left!, 'scratch'), { recursive: true });
  await writeFile(join(sandbox, 'deep', left!, 'key'), 'another');
  await leave();
  await makeFolder(out, false, 'key', async (_, scratch) => expect(await readdir(scratch)).toEqual([]));
  expect(await parts()).toEqual([]);
});
