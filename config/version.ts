/** The version of this package: ranks and coordinator must have the same, and doctor prints it. */
import { readFileSync } from 'node:fs';
import { z } from 'zod';

export const packageVersion: string = readVersion();

function readVersion(): string {
  // From dist/config/ the manifest is two folders up, from the sources one.
  const manifest = new URL(import.meta.url.endsWith('.ts') ? '../package.json' : '../../package.json', import.meta.url);
  const parsed: unknown = JSON.parse(readFileSync(manifest, 'utf8'));
  return z.object({ version: z.string() }).parse(parsed).version;
}
