/**
 * The life of `tpla worker`: a rank program that offers itself to the coordinator, and after its end another, until the
 * command is stopped. Each run is a process of its own, so that a crash in native code ends only that, and nothing of a
 * former coordinator is kept. Its process ends with this one, however this one ends.
 * Read next: ../../worker/main.ts (the process), places.ts (the coordinator's answer).
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as after } from 'node:timers/promises';
import { toWorkerSchema } from '../../collective/greetings.ts';
import { ConfigError, PeerError } from '../../config/errors.ts';
import { endsWithin, rankEnv, rankExecArgv, rankProgram } from '../rank-processes.ts';

export interface OfferOptions {
  /** Control endpoint of the coordinator. */
  readonly join: string;
  /** undefined: any rank that is free. */
  readonly rank: number | undefined;
  readonly worldSize: number | null;
  readonly modelPath: string;
  /** Key file; undefined: none, or `keyText`. */
  readonly keys: string | undefined;
  readonly keyText: string | undefined;
  readonly token: string;
  /** End after the first run instead of waiting for the next coordinator. */
  readonly isOnce: boolean;
  readonly log: (line: string) => void;
  readonly signal: AbortSignal;
}

/** Between two offers; doubles while they fail, since the cause may take long to be mended. */
const firstPauseMs = 200;
const longestPauseMs = 5000;
/** Between SIGTERM and SIGKILL. */
const afterTermMs = 5000;

interface Run {
  /** Whether the coordinator gave it a rank. */
  readonly hadRank: boolean;
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** The last line it wrote. */
  readonly lastLine: string;
}

/** Returns when stopped. @throws only with `isOnce`: what ended the run */
export async function offerUntilStopped(options: OfferOptions): Promise<void> {
  const { join, log, signal } = options;
  const say = withoutRepeats(log);
  let pauseMs = firstPauseMs;
  while (!signal.aborted) {
    say(`waiting for the coordinator at ${join}`);
    const run = await offerOnce(options, say);
    if (signal.aborted) return;
    if (options.isOnce) return requireGoodEnd(run);
    if (run.hadRank) {
      pauseMs = firstPauseMs;
      say.forget();
      say(howItEnded(run));
    }
    // A stop during the pause ends the loop, not the command with an error.
    await after(pauseMs, undefined, { signal }).catch(() => undefined);
    pauseMs = Math.min(longestPauseMs, pauseMs * 2);
  }
}

async function offerOnce(options: OfferOptions, say: (line: string) => void): Promise<Run> {
  const child = startOffer(options);
  const stop = (): void => void child.kill('SIGTERM');
  options.signal.addEventListener('abort', stop, { once: true });
  const killNow = (): void => void child.kill('SIGKILL');
  process.on('exit', killNow);
  let hadRank = false;
  let lastLine = '';
  const lines = (text: string): void => {
    for (const line of text.split('\n').filter((each) => each.trim() !== '')) say((lastLine = line));
  };
  child.stdout?.setEncoding('utf8').on('data', lines);
  child.stderr?.setEncoding('utf8').on('data', lines);
  child.on('message', (message) => {
    const told = toWorkerSchema.parse(message);
    if (told.kind === 'freeze') return freeze(child, told.ms);
    hadRank = true;
    say(`rank ${told.rank} of ${told.worldSize} for the coordinator at ${options.join}`);
  });
  try {
    if (options.signal.aborted) stop();
    const closed = once(child, 'close');
    if (options.signal.aborted || (await stoppedBefore(closed, options.signal))) {
      if (!(await endsWithin(closed, afterTermMs))) killNow();
    }
    await closed;
  } finally {
    process.off('exit', killNow);
    options.signal.removeEventListener('abort', stop);
  }
  return { hadRank, code: child.exitCode, signal: child.signalCode, lastLine };
}

function startOffer(options: OfferOptions): ChildProcess {
  const { join, rank, worldSize, modelPath, keys, keyText, token } = options;
  const args = ['--offer', '--connect', join, '--model', modelPath, '--token', token];
  if (rank !== undefined) args.push('--rank', String(rank));
  if (worldSize !== null) args.push('--world-size', String(worldSize));
  if (keys !== undefined) args.push('--keys', keys);
  const { TPLA_KEYS: _, ...env } = process.env;
  return fork(rankProgram(), args, {
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    execArgv: [...rankExecArgv],
    env: { ...rankEnv, ...env, ...(keyText === undefined ? {} : { TPLA_KEYS: keyText }) },
    // Ctrl-C in a terminal reaches the command alone, which then stops the rank.
    detached: process.platform !== 'win32',
  });
}

/** For a fault drill. A process that is killed meanwhile takes no more signals. */
function freeze(child: ChildProcess, ms: number): void {
  child.kill('SIGSTOP');
  setTimeout(() => child.kill('SIGCONT'), ms);
}

/** false: the process ended by itself. */
function stoppedBefore(closed: Promise<unknown>, signal: AbortSignal): Promise<boolean> {
  return new Promise((resolve, reject) => {
    signal.addEventListener('abort', () => resolve(true), { once: true });
    closed.then(() => resolve(false), reject);
  });
}

function howItEnded({ code, signal, lastLine }: Run): string {
  if (signal !== null) return `the rank's process was ended by ${signal}; offering another`;
  return code === 0 ? 'the coordinator has stopped' : `the rank has ended: ${lastLine}`;
}

function requireGoodEnd(run: Run): void {
  const { code, lastLine } = run;
  if (code === 0) return;
  if (code === 2) throw new ConfigError(lastLine);
  throw new PeerError(howItEnded(run));
}

/** What cannot be done is tried every few seconds and said once. */
function withoutRepeats(log: (line: string) => void): ((line: string) => void) & { forget: () => void } {
  const said = new Set<string>();
  const say = (line: string): void => {
    if (said.has(line)) return;
    said.add(line);
    log(line);
  };
  return Object.assign(say, { forget: () => said.clear() });
}
