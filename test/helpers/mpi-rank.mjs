// One rank under mpirun: runs every operation at several lengths and writes what it got to a file. Imports the
// build, because Node 20 does not run TypeScript. Values are those of test/suites/process-group.ts, given by the parent.
import { readFileSync, writeFileSync } from 'node:fs';
import { MpiGroup } from '../../dist/collective/mpi-group.js';
import { openMpi } from '../../dist/collective/mpi.js';

const mpi = openMpi();
const [, , inputFile, worldSize] = process.argv;
/** [{ parts: [ranks][elements] }]: one entry for each length */
const cases = JSON.parse(readFileSync(inputFile, 'utf8'));
const group = new MpiGroup(mpi, mpi.rank, Number(worldSize));
const results = [];
for (const { parts } of cases) {
  const sum = Float32Array.from(parts[group.rank]);
  await group.allReduceSum(sum, 'test');
  const lengths = parts.map((part, rank) => Math.max(0, part.length - rank));
  const out = new Float32Array(lengths.reduce((a, b) => a + b, 0));
  await group.allGather(Float32Array.from(parts[group.rank]).subarray(0, lengths[group.rank]), lengths, out, 'test');
  const copied = Float32Array.from(parts[group.rank]);
  await group.broadcast(copied, group.worldSize - 1, 'test');
  await group.barrier('test');
  results.push({ sum: [...sum], gathered: [...out], copied: [...copied] });
}
// To a file of its own: mpirun mixes what ranks print.
writeFileSync(`${inputFile}.${group.rank}`, JSON.stringify({ results, stats: group.stats }));
