/**
 * Does a cluster under full load and a fault every 20 s stay as it is for as long as it runs? A coordinator, local ranks
 * and one that joined; four greedy answers at a time, each compared with the undisturbed one; in turn a local rank is
 * killed, a local rank is frozen, the joined rank is killed. After each recovery: memory, descriptors, processes,
 * shared-memory segments, files. At the end the coordinator is killed: its ranks have to go, the worker to wait again.
 * Build first, then (Linux):
 *   node dist/scripts/faults/soak.js --model MODEL --minutes 30 --every 20
 * --pause MS between two answers, for a machine that others use, too (default 0: full load).
 * Prints one JSON line; exit code 1 when something was wrong, lost or left. Read next: served.ts, processes.ts.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as after } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { descriptors, isRunning, residentBytes } from './processes.ts';
import { startServed, type Health, type Served } from './served.ts';

export interface SoakOptions {
  readonly model: string;
  readonly faults: number;
  readonly everyMs: number;
  readonly pauseMs: number;
  readonly log: (line: string) => void;
}

interface Sample {
  readonly minute: number;
  readonly coordinatorBytes: number;
  readonly coordinatorDescriptors: number;
  /** Rank 0, which is never the one that is broken. */
  readonly rankBytes: number;
  readonly rankDescriptors: number;
  /** Of this cluster: coordinator, worker, ranks. */
  readonly processes: number;
  /** In its temporary folder, sockets of ranks included. */
  readonly files: number;
}

export interface SoakResult {
  readonly faults: number;
  readonly answers: number;
  readonly wrongAnswers: number;
  readonly firstError: string | null;
  readonly slowestRecoveryMs: number;
  readonly first: Sample;
  readonly last: Sample;
  /** Of the least squares line through the coordinator's samples, the first third left out. */
  readonly megabytesPerHour: number;
  readonly rankMegabytesPerHour: number;
  /** From SIGKILL of the coordinator until its local ranks were gone. */
  readonly orphansMs: number;
  /** Processes, files and segments that outlived everything. */
  readonly leftovers: readonly string[];
}

const prompts = ['Once upon a time', 'The little dog', 'Tom and Lily', 'One day'];
const maxTokens = 48;
const recoveryDeadlineMs = 60_000;
const lookMs = 50;

export async function soak({ model, faults, everyMs, pauseMs, log }: SoakOptions): Promise<SoakResult> {
  const limits = { restarts: 1000, backoffMs: 0 };
  await using served = await startServed({ model, hosts: ['local', 'local', 'join'], faults: limits });
  const load = new Load(served, await Promise.all(prompts.map((prompt) => served.answer(prompt, maxTokens))), pauseMs);
  const running = load.run();
  const startedAt = performance.now();
  const samples = [await sample(served, startedAt)];
  let slowestRecoveryMs = 0;
  for (let i = 0; i < faults; i++) {
    const nextAt = startedAt + (i + 1) * everyMs;
    await after(Math.max(0, nextAt - performance.now()));
    slowestRecoveryMs = Math.max(slowestRecoveryMs, await breakOne(served, i));
    samples.push(await sample(served, startedAt));
    log(JSON.stringify(samples.at(-1)));
  }
  await load.stop(running);
  samples.push(await sample(served, startedAt));
  const end = await killCoordinator(served);
  return {
    faults,
    ...load.result(),
    slowestRecoveryMs: Math.round(slowestRecoveryMs),
    ...ends(samples),
    megabytesPerHour: slope(samples, ({ coordinatorBytes }) => coordinatorBytes),
    rankMegabytesPerHour: slope(samples, ({ rankBytes }) => rankBytes),
    ...end,
  };
}

/** @returns how long until all ranks served again */
async function breakOne(served: Served, i: number): Promise<number> {
  const before = await served.health();
  const rank = [1, 1, 2][i % 3] ?? 1;
  const victim = before.ranks[rank];
  if (victim === undefined) throw new Error(`no rank ${rank}`);
  const startedAt = performance.now();
  process.kill(victim.pid, i % 3 === 1 ? 'SIGSTOP' : 'SIGKILL');
  const isWell = ({ status, ranks }: Health): boolean =>
    status === 'ok' && (ranks[rank]?.restarts ?? 0) > victim.restarts;
  await until(async () => isWell(await served.health()), `rank ${rank} did not come back`);
  return performance.now() - startedAt;
}

async function killCoordinator(served: Served): Promise<Pick<SoakResult, 'orphansMs' | 'leftovers'>> {
  const { ranks } = await served.health();
  const local = ranks.filter(({ rank }) => rank < 2).map(({ pid }) => pid);
  let said = '';
  served.worker?.stderr?.on('data', (text: Buffer) => (said += text.toString()));
  const startedAt = performance.now();
  served.server.kill('SIGKILL');
  await until(() => !local.some(isRunning), 'local ranks outlived the coordinator');
  const orphansMs = Math.round(performance.now() - startedAt);
  await until(() => said.includes('waiting for the coordinator'), 'the worker does not wait again');
  const workers = processesOf(served).filter((pid) => pid !== served.worker?.pid);
  const files = served.leftovers();
  // Others on this machine may be starting clusters: their segments have a name for a moment only.
  await until(() => segments().length === 0, `segments are left: ${segments().join(', ')}`);
  // What the worker offers next is its only child.
  const leftovers = [...workers.slice(1).map((pid) => `process ${pid}`), ...files];
  return { orphansMs, leftovers };
}

/** Answers without end. */
class Load {
  readonly #served: Served;
  readonly #expected: readonly string[];
  readonly #pauseMs: number;
  #stopped = false;
  #result: Pick<SoakResult, 'answers' | 'wrongAnswers' | 'firstError'> = {
    answers: 0,
    wrongAnswers: 0,
    firstError: null,
  };

  constructor(served: Served, expected: readonly string[], pauseMs: number) {
    this.#pauseMs = pauseMs;
    this.#served = served;
    this.#expected = expected;
  }

  async run(): Promise<void> {
    await Promise.all(prompts.map((prompt, i) => this.#repeat(prompt, this.#expected[i] ?? '')));
  }

  async stop(running: Promise<void>): Promise<void> {
    this.#stopped = true;
    await running;
  }

  result(): Pick<SoakResult, 'answers' | 'wrongAnswers' | 'firstError'> {
    return this.#result;
  }

  async #repeat(prompt: string, expected: string): Promise<void> {
    while (!this.#stopped) {
      const text = await this.#served.answer(prompt, maxTokens).catch(String);
      const { answers, wrongAnswers, firstError } = this.#result;
      const isWrong = text !== expected;
      this.#result = {
        answers: answers + 1,
        wrongAnswers: wrongAnswers + (isWrong ? 1 : 0),
        firstError: firstError ?? (isWrong ? text : null),
      };
      await after(this.#pauseMs);
    }
  }
}

async function sample(served: Served, startedAt: number): Promise<Sample> {
  const { ranks } = await served.health();
  const first = ranks[0]?.pid ?? 0;
  return {
    minute: (performance.now() - startedAt) / 60_000,
    coordinatorBytes: residentBytes(served.pid),
    coordinatorDescriptors: descriptors(served.pid),
    rankBytes: residentBytes(first),
    rankDescriptors: descriptors(first),
    processes: processesOf(served).length,
    files: served.leftovers().length,
  };
}

/** Coordinator, worker and ranks: all have its folder or its port on their command line. */
function processesOf({ folder, controlPort }: Served): number[] {
  return readdirSync('/proc').flatMap((name) => {
    if (!/^\d+$/.test(name) || !isRunning(Number(name))) return [];
    const line = commandLine(name);
    return line.includes(folder) || line.includes(`127.0.0.1:${controlPort}`) ? [Number(name)] : [];
  });
}

function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  } catch {
    // It has ended since.
    return '';
  }
}

function segments(): string[] {
  return readdirSync('/dev/shm').filter((name) => name.startsWith('tpla-'));
}

function ends(samples: readonly Sample[]): Pick<SoakResult, 'first' | 'last'> {
  const [first] = samples;
  const last = samples.at(-1);
  if (first === undefined || last === undefined) throw new RangeError('a run without samples');
  return { first, last };
}

function slope(samples: readonly Sample[], bytesOf: (sample: Sample) => number): number {
  const kept = samples.slice(Math.floor(samples.length / 3));
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [minute, bytes] = [mean(kept.map((each) => each.minute)), mean(kept.map(bytesOf))];
  const above = kept.reduce((sum, each) => sum + (each.minute - minute) * (bytesOf(each) - bytes), 0);
  const below = kept.reduce((sum, each) => sum + (each.minute - minute) ** 2, 0);
  return Math.round((above / below) * 60 * 1e-5) / 10;
}

async function until(condition: () => boolean | Promise<boolean>, otherwise: string): Promise<void> {
  const deadline = performance.now() + recoveryDeadlineMs;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`${otherwise} in ${recoveryDeadlineMs} ms`);
    await after(lookMs);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();

async function main(): Promise<void> {
  const text = { type: 'string' } as const;
  const { values } = parseArgs({ options: { model: text, minutes: text, every: text, pause: text } });
  const number = z.coerce.number().positive();
  const everyMs = 1000 * number.parse(values.every ?? 20);
  const faults = Math.floor((number.parse(values.minutes ?? 30) * 60_000) / everyMs);
  const pauseMs = z.coerce
    .number()
    .nonnegative()
    .parse(values.pause ?? 0);
  const { model = 'default' } = values;
  const result = await soak({ model, faults, everyMs, pauseMs, log: (line) => console.error(line) });
  console.log(JSON.stringify(result));
  if (result.wrongAnswers > 0 || result.leftovers.length > 0 || result.orphansMs > 2000) process.exitCode = 1;
}
