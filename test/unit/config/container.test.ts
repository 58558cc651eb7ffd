/** The Dockerfile, as far as it can be read without a container engine. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';

const root = fileURLToPath(new URL('../../..', import.meta.url));

describe('the Dockerfile', () => {
  const steps = readFileSync(join(root, 'Dockerfile'), 'utf8')
    .split('\n')
    .filter((line) => /^[A-Z]/.test(line));
  const copied = steps
    .filter((line) => line.startsWith('COPY ') && !line.includes('--from'))
    .flatMap((line) => line.split(' ').slice(1, -1));

  test('copies what is there and not kept out, and all that the build reads', () => {
    const ignored = readFileSync(join(root, '.dockerignore'), 'utf8').trim().split('\n');
    for (const path of copied) {
      expect(existsSync(join(root, path)), path).toBe(true);
      expect(ignored).not.toContain(path);
    }
    const setup = readFileSync(join(root, 'scripts', 'setup.mjs'), 'utf8');
    const folders = /sourceFolders = \[(.*)\]/.exec(setup)![1]!.match(/\w+/g)!;
    expect(copied).toEqual(expect.arrayContaining([...folders, 'package-lock.json', 'tsconfig.build.json']));
  });

  test('copies what the sources import from other folders', () => {
    const setup = readFileSync(join(root, 'scripts', 'setup.mjs'), 'utf8');
    const folders = /sourceFolders = \[(.*)\]/.exec(setup)![1]!.match(/\w+/g)!;
    const files = folders.flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
        .filter((name) => name.endsWith('.ts'))
        .map((name) => join(root, folder, name)),
    );
    const outside = files.flatMap((file) =>
      [...readFileSync(file, 'utf8').matchAll(/ from '(?:\.\.\/)+(test\/\w+)\//g)].map(([, folder]) => folder),
    );
    expect(copied).toEqual(expect.arrayContaining([...new Set(outside)]));
  });

  test('its entry point is the program of the package, and everything it needs is in the last stage', () => {
    const manifest = z
      .object({ bin: z.object({ tpla: z.string() }), scripts: z.record(z.string(), z.string()) })
      .parse(JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')));
    expect(steps).toContain(`ENTRYPOINT ["node", "/tpla/${manifest.bin.tpla}"]`);
    expect(manifest.scripts).toHaveProperty('build');
    for (const path of ['package.json', 'node_modules', 'dist'])
      expect(
        steps.some((line) => line.startsWith(`COPY --from=build /tpla/${path} `)),
        path,
      ).toBe(true);
  });
});
