/**
 * How long does one all-reduce take? Real processes on this machine: warm up, verify every element of the sums, then
 * time. Prints a table row per run and one JSON line. Build first, then for example:
 *   node dist/scripts/bench/allreduce.js --ranks 2 --floats 576 --transport shm
 * --transport shm | two-levels | zeromq-ring | zeromq-direct | zeromq-scatter | zeromq-auto, --hosts of two levels, a letter for each rank
 * (by default the first half of the ranks on one, the others on a second), --count operations (default: about a second's worth),
 * --endpoint ipc | tcp://127.0.0.1:*
 */
import { fork, spawnSync } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { invariant } from '../../config/errors.ts';
import type { ZeroMqAlgorithm } from '../../collective/exchange.ts';
import type { ProcessGroup } from '../../collective/group.ts';
import { sumInChunkOrder } from '../../collective/ring.ts';
import { hostRanksOf, ranksBeside } from '../../collective/host-ranks.ts';
import { createSharedMemoryGroup, mapSegment } from '../../collective/shared-memory.ts';
import { TwoLevelGroup } from '../../collective/two-level-group.ts';
import { bindRing } from '../../collective/zeromq-group.ts';

const transports = ['shm', 'two-levels', 'zeromq-ring', 'zeromq-direct', 'zeromq-scatter', 'zeromq-auto'] as const;
const seed = 1;

const runSchema = z.strictObject({
  ranks: z.coerce.number().int().min(1).max(64),
  floats: z.coerce.number().int().min(0),
  transport: z.enum(transports),
  count: z.coerce.number().int().min(1),
  endpoint: z.string(),
  hosts: z.string(),
});
type Run = z.infer<typeof runSchema>;

const childSchema = z.strictObject({ rank: z.number(), run: runSchema, runId: z.string() });
const endpointsSchema = z.array(z.string());

if (process.argv[2] === '--rank') await runRank(childSchema.parse(JSON.parse(process.argv[3] ?? '')));
else await runParent();

async function runParent(): Promise<void> {
  const { values } = parseArgs({
    options: {
      ranks: { type: 'string', default: '2' },
      floats: { type: 'string', default: '576' },
      transport: { type: 'string', default: 'shm' },
      count: { type: 'string', default: '5000' },
      endpoint: { type: 'string', default: 'ipc' },
      hosts: { type: 'string', default: '' },
    },
  });
  const run = runSchema.parse(values);
  const runId = `bench-${process.pid}`;
  const children = Array.from({ length: run.ranks }, (_, rank) =>
    fork(fileURLToPath(import.meta.url), ['--rank', JSON.stringify({ rank, run, runId })]),
  );
  const exits = children.map((child) => once(child, 'exit'));
  const endpoints = await Promise.all(children.map(messageOf));
  const results = children.map(messageOf);
  for (const child of children) child.send(endpoints);
  const [sorted] = z.array(z.array(z.number())).parse(await Promise.all(results));
  await Promise.all(exits);
  report(run, sorted ?? []);
}

/** The child's next message; it ends the run when the child dies first. */
async function messageOf(child: ChildProcess): Promise<unknown> {
  return new Promise((resolve, reject) => {
    child.once('message', resolve);
    // Not 'exit', which may come before the last message.
    child.once('disconnect', () => reject(new Error('a rank ended without an answer')));
  });
}

function report(run: Run, sorted: readonly number[]): void {
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
  const micros = { min: at(0), p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1) };
  const bytes = 4 * run.floats;
  // What a rank must at least move: everyone's values in, its sum out.
  const gigabytesPerSecond = (bytes * run.ranks) / 1e3 / micros.p50;
  console.log('| transport | ranks | bytes | n | min us | p50 us | p99 us | max us | GB/s |');
  console.log('|---|---|---|---|---|---|---|---|---|');
  const cells = [run.transport, run.ranks, bytes, sorted.length];
  const times = [micros.min, micros.p50, micros.p99, micros.max, gigabytesPerSecond].map((x) => x.toFixed(2));
  console.log(`| ${[...cells, ...times].join(' | ')} |`);
  const git = spawnSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' });
  const commit = git.status === 0 ? git.stdout.trim() : 'unknown';
  const machine = { cpu: cpus()[0]?.model, cores: cpus().length, platform: process.platform, node: process.version };
  console.log(JSON.stringify({ bench: 'allreduce', ...run, seed, micros, gigabytesPerSecond, machine, commit }));
}

async function runRank({ rank, run, runId }: z.infer<typeof childSchema>): Promise<void> {
  await using ring = await bindRing(run.endpoint);
  const told = once(process, 'message');
  process.send?.(ring.endpoint);
  const endpoints = endpointsSchema.parse((await told)[0]);
  const algorithm = algorithmOf(run.transport);
  const settings = { rank, worldSize: run.ranks, epoch: 1, timeoutMs: 10_000 };
  await using overZeroMq = await ring.join({ ...settings, endpoints, algorithm });
  if (run.transport === 'shm') {
    await using group = await createSharedMemoryGroup({ ...settings, runId, bootstrap: overZeroMq });
    await tell(await measure(group, run));
  } else if (run.transport === 'two-levels') {
    const hosts = hostsOf(run);
    const segment = await mapSegment({ ...settings, runId, bootstrap: overZeroMq }, ranksBeside(rank, hosts));
    await using group = new TwoLevelGroup({ hosts, timeoutMs: 10_000, mailbox: overZeroMq.mailbox, segment });
    await tell(await measure(group, run));
  } else {
    await tell(await measure(overZeroMq, run));
  }
  process.disconnect();
}

/** Resolves when the message has been written: a channel that is cut before loses a long one. */
async function tell(message: number[]): Promise<void> {
  await new Promise((resolve) => process.send?.(message, resolve));
}

/** Microseconds of each operation, sorted. */
async function measure(group: ProcessGroup, run: Run): Promise<number[]> {
  const parts = Array.from({ length: run.ranks }, (_, rank) => valuesOf(run.floats, rank)); // [ranks][floats]
  const expected = expectedSum(run, parts);
  const own = parts[group.rank] ?? expected;
  const buffer = new Float32Array(run.floats);
  const times: number[] = [];
  const warmUp = Math.min(500, run.count);
  for (let i = -warmUp; i < run.count; i++) {
    buffer.set(own);
    const start = performance.now();
    await group.allReduceSum(buffer, 'bench');
    const micros = 1000 * (performance.now() - start);
    if (i >= 0) times.push(micros);
    if (i >= 0 && i % 100 !== 0) continue;
    invariant(
      buffer.every((value, k) => value === expected[k]),
      `rank ${group.rank}: wrong sum in operation ${i}`,
    );
  }
  await group.barrier('bench ends');
  return times.sort((a, b) => a - b);
}

function algorithmOf(transport: Run['transport']): ZeroMqAlgorithm {
  switch (transport) {
    case 'zeromq-ring':
      return 'ring';
    case 'zeromq-direct':
      return 'direct';
    case 'zeromq-scatter':
      return 'scatter';
    case 'shm':
    case 'two-levels':
    case 'zeromq-auto':
      return 'auto';
  }
}

/** Name of each rank's host. */
function hostsOf({ hosts, ranks }: Run): string[] {
  if (hosts !== '') return hosts.split('');
  return Array.from({ length: ranks }, (_, rank) => (2 * rank < ranks ? 'a' : 'b'));
}

/** Of two levels: each host's sum, then the hosts'. */
function expectedSum(run: Run, parts: readonly Float32Array[]): Float32Array {
  const sumOf = (some: readonly Float32Array[]): Float32Array => {
    const sum = new Float32Array(run.floats);
    sumInChunkOrder(some, sum, 0, run.floats);
    return sum;
  };
  if (run.transport !== 'two-levels') return sumOf(parts);
  return sumOf(hostRanksOf(hostsOf(run)).ranks.map((ranks) => sumOf(ranks.flatMap((rank) => parts[rank] ?? []))));
}

/** Distinct per rank and element. */
function valuesOf(length: number, rank: number): Float32Array {
  return Float32Array.from({ length }, (_, i) => Math.sin(seed + rank * 1e6 + i) * (1 + (i % 7)));
}
