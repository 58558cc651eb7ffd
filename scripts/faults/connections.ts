/**
 * Does a cluster go on while strangers connect to every port it has? A coordinator, a local rank and a worker, all on TCP
 * without keys, the case where most bytes are read; to each port (control plane, each rank's data plane, HTTP) come
 * `--count` connections with random bytes, half handshakes, whole handshakes with mutated frames, huge lengths, bad HTTP,
 * or nothing. Meanwhile answers must stay right. Build first, then (Linux):
 *   node dist/scripts/faults/connections.js --model MODEL --count 10000
 * Prints one JSON line; exit code 1 when an answer was wrong, a process ended or memory of one grew by 50 MB.
 * Read next: stranger.ts (one connection), served.ts (the cluster).
 */
import { setTimeout as after } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { seededRandom } from '../../coordinator/sampler.ts';
import { descriptors, listeningPorts, residentBytes } from './processes.ts';
import { startServed, type Served } from './served.ts';
import { Strangers } from './stranger.ts';

export interface ConnectionsResult {
  readonly connections: number;
  readonly ports: number;
  /** Given meanwhile. */
  readonly answers: number;
  readonly wrongAnswers: number;
  /** By process: coordinator, then ranks. */
  readonly grownBytes: readonly number[];
  readonly newDescriptors: readonly number[];
  readonly status: string;
  readonly restarts: number;
}

/** Connections to each port before memory is first looked at: buffers grow to the size they keep. */
const warmUp = 500;
const settleMs = 500;
const settleTries = 40;

export async function connectToAll(model: string, count: number, seed: number): Promise<ConnectionsResult> {
  await using served = await startServed({ model, hosts: ['local', 'join'] });
  const { ranks } = await served.health();
  const pids = [served.pid, ...ranks.map(({ pid }) => pid)];
  const ports = [...new Set([...pids.flatMap(listeningPorts), Number(new URL(served.url).port)])];
  const strangers = new Strangers(seededRandom(seed));
  const expected = await served.answer(prompt, maxTokens);
  for (const port of ports) await strangers.visit(port, Math.min(count, warmUp));
  await settled(pids, pids.map(descriptors));
  const before = pids.map((pid) => ({ bytes: residentBytes(pid), open: descriptors(pid) }));
  const asking = ask(served, expected);
  for (const port of ports) await strangers.visit(port, count);
  strangers.leave();
  const { answers, wrongAnswers } = await asking.stop();
  await settled(
    pids,
    before.map(({ open }) => open),
  );
  const health = await served.health();
  return {
    connections: count,
    ports: ports.length,
    answers,
    wrongAnswers,
    grownBytes: pids.map((pid, i) => residentBytes(pid) - (before[i]?.bytes ?? 0)),
    newDescriptors: pids.map((pid, i) => descriptors(pid) - (before[i]?.open ?? 0)),
    status: health.status,
    restarts: health.ranks.reduce((sum, { restarts }) => sum + restarts, 0),
  };
}

const prompt = 'Once upon a time';
const maxTokens = 16;

/** One answer after another until stopped. */
function ask(served: Served, expected: string): { stop(): Promise<{ answers: number; wrongAnswers: number }> } {
  let isStopped = false;
  let [answers, wrongAnswers] = [0, 0];
  const asked = (async () => {
    do {
      const text = await served.answer(prompt, maxTokens).catch(String);
      answers++;
      if (text !== expected) wrongAnswers++;
    } while (!isStopped);
  })();
  return {
    async stop() {
      isStopped = true;
      await asked;
      return { answers, wrongAnswers };
    },
  };
}

/** Waits until the processes have no more open than before; strangers' last connections end by a deadline. */
async function settled(pids: readonly number[], open: readonly number[]): Promise<void> {
  for (let i = 0; i < settleTries; i++) {
    await after(settleMs);
    if (pids.every((pid, p) => descriptors(pid) <= (open[p] ?? 0))) return;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const text = { type: 'string' } as const;
  const { values } = parseArgs({ options: { model: text, count: text, seed: text } });
  const startedAt = performance.now();
  const result = await connectToAll(
    values.model ?? 'default',
    Number(values.count ?? 10_000),
    Number(values.seed ?? 1),
  );
  console.log(JSON.stringify({ ...result, seconds: Math.round((performance.now() - startedAt) / 1000) }));
  const { wrongAnswers, grownBytes, status, restarts } = result;
  if (wrongAnswers + restarts > 0 || status !== 'ok' || grownBytes.some((bytes) => bytes > 50e6)) process.exitCode = 1;
}
