import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { copyIdentity } from '../../../model/copy-identity.ts';
import { openCheckpoint } from '../../../model/open.ts';
import { goldenFolder } from '../../helpers/golden.ts';

test('two copies are the same; another training of the same sizes is not', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'copy-identity-'));
  try {
    const original = join(goldenFolder, 'stories260K');
    cpSync(original, folder, { recursive: true });
    await using first = await openCheckpoint(original);
    await using second = await openCheckpoint(folder);
    expect(await copyIdentity(second)).toBe(await copyIdentity(first));
    const file = join(folder, 'model.safetensors');
    const bytes = readFileSync(file);
    bytes[bytes.length - 1]! ^= 1;
    writeFileSync(file, bytes);
    await using other = await openCheckpoint(folder);
    expect(other.identity).toBe(first.identity);
    expect(await copyIdentity(other)).not.toBe(await copyIdentity(first));
  } finally {
    rmSync(folder, { recursive: true });
  }
});
