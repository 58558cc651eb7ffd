/** Collectives over a real OpenMPI, ranks started by mpirun. Skipped where it is not installed. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { z } from 'zod';
import { expectSameBits, sumOf, valuesOf } from '../suites/process-group.ts';

const program = fileURLToPath(new URL('../helpers/mpi-rank.mjs', import.meta.url));
const isInstalled = spawnSync('mpirun', ['--version']).status === 0;
const lengths = [0, 1, 3, 576, 1000, 40_001];
const outputSchema = z.object({
  results: z.array(z.object({ sum: z.array(z.number()), gathered: z.array(z.number()), copied: z.array(z.number()) })),
  stats: z.object({ operations: z.number(), bytesSent: z.number().positive() }),
});

// As root mpirun asks for consent; more ranks than cores are asked for on purpose.
const mpiArgs = ['--allow-run-as-root', '--oversubscribe'];

test.skipIf(!isInstalled).each([2, 3])('%i ranks under mpirun: the bits of every other group', (worldSize) => {
  const folder = mkdtempSync(join(tmpdir(), 'tpla-mpi-'));
  const input = join(folder, 'input.json');
  const cases = lengths.map((length) => ({
    parts: Array.from({ length: worldSize }, (_, rank) => [...valuesOf(length, rank, length)]),
  }));
  writeFileSync(input, JSON.stringify(cases));
  const { status, stderr } = spawnSync(
    'mpirun',
    [...mpiArgs, '-n', `${worldSize}`, process.execPath, program, input, `${worldSize}`],
    { encoding: 'utf8', timeout: 60_000 },
  );
  expect(status, stderr).toBe(0);
  const ranks = Array.from({ length: worldSize }, (_, rank) =>
    outputSchema.parse(JSON.parse(readFileSync(`${input}.${rank}`, 'utf8'))),
  );
  rmSync(folder, { recursive: true });
  for (const { results } of ranks) {
    cases.forEach(({ parts }, k) => {
      const values = parts.map((part) => Float32Array.from(part));
      const { sum, gathered, copied } = results[k]!;
      expectSameBits(Float32Array.from(sum), sumOf(values));
      expect(gathered).toEqual(parts.flatMap((part, rank) => part.slice(0, Math.max(0, part.length - rank))));
      expect(copied).toEqual(parts.at(-1));
    });
  }
});

test.skipIf(!isInstalled)('a cluster of another size than mpirun started is refused', () => {
  const folder = mkdtempSync(join(tmpdir(), 'tpla-mpi-'));
  const input = join(folder, 'input.json');
  writeFileSync(input, '[]');
  const { status, stderr } = spawnSync('mpirun', [...mpiArgs, '-n', '2', process.execPath, program, input, '3'], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  rmSync(folder, { recursive: true });
  expect(status).not.toBe(0);
  expect(stderr).toMatch(
    /ConfigError: rank 0: transport mpi: this process is rank 0 of 2 in MPI, and rank 0 of 3 in the cluster; start the ranks with mpirun -n 3/,
  );
});
