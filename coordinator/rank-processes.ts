/**
 * The processes that this machine starts for ranks, here or through ssh: starts them, keeps the end of what they print, says when one ends, and
 * ends them all (ranks that join are nobody's to start or end): a message first (the caller's), then SIGTERM, then SIGKILL. No process outlives the coordinator: a
 * rank exits when its IPC channel closes, and an exit hook kills what is left. Read next: control-loop.ts.
 */
import { fork, spawn, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { ConfigError } from '../config/errors.ts';
import { removeRunFolder } from '../collective/endpoint.ts';
import type { MachineKeys } from '../collective/key-files.ts';
import type { ProcessExit } from './failures.ts';

/** What is started for a rank. */
export type Launch =
  /** The rank program, on this machine. */
  | { readonly kind: 'local' }
  /** Nothing: somebody starts `tpla worker` elsewhere. */
  | { readonly kind: 'join' }
  /** Any program, such as ssh; `input` is all that it reads, after which its stdin stays open until the rank is ended. */
  | { readonly kind: 'command'; readonly command: string; readonly args: readonly string[]; readonly input: string };

export interface LaunchOptions {
  /** By rank. */
  readonly launches: readonly Launch[];
  /** Control endpoint that the ranks connect to; the folder of its socket file is removed when everything has ended. */
  readonly endpoint: string;
  readonly token: string;
  /** Of the local ranks, which get them in their environment; undefined: none. */
  readonly keys: MachineKeys | undefined;
  /** Of JavaScript's heap of a local rank; undefined: as Node chooses. */
  readonly heapLimitMb: number | undefined;
  readonly onExit: (rank: number, exit: ProcessExit) => void;
}

/** Between SIGTERM and SIGKILL. */
const afterTermMs = 5000;
const keptOutput = 8000;
/** Its own process group: Ctrl-C in a terminal reaches the coordinator alone, which stops the ranks in order. */
const detached = process.platform !== 'win32';

interface RankProcess {
  readonly child: ChildProcess;
  output: string;
  readonly exited: Promise<void>;
}

export class RankProcesses {
  /** By rank; undefined: a rank that joins. */
  readonly #ranks: (RankProcess | undefined)[] = [];
  readonly #options: LaunchOptions;
  readonly #killAll = (): void => this.#kill();

  constructor(options: LaunchOptions) {
    this.#options = options;
    process.on('exit', this.#killAll);
    options.launches.forEach((launch, rank) => this.#ranks.push(this.#start(rank, launch)));
  }

  pidOf(rank: number): number | undefined {
    return this.#ranks[rank]?.child.pid;
  }

  /** Kills the rank's process, if it still runs, and starts another. Resolves when the old one is gone. */
  async replace(rank: number): Promise<void> {
    const old = this.#ranks[rank];
    // From here on the old process is nobody's: its end is not reported.
    const launch = this.#options.launches[rank];
    if (launch !== undefined) this.#ranks[rank] = this.#start(rank, launch);
    if (old === undefined) return;
    if (isRunning(old.child)) old.child.kill('SIGKILL');
    await old.exited;
  }

  /**
   * Ends every process and removes the folder; returns when all are gone. Call after sending `stop`.
   * @param patienceMs for leaving by themselves, before SIGTERM
   */
  async end(patienceMs: number): Promise<void> {
    const all = Promise.all(this.#ranks.flatMap((rank) => (rank === undefined ? [] : [rank.exited])));
    if (!(await endsWithin(all, patienceMs))) {
      this.#signal('SIGTERM');
      if (!(await endsWithin(all, afterTermMs))) this.#signal('SIGKILL');
    }
    await all;
    process.off('exit', this.#killAll);
    removeRunFolder(this.#options.endpoint);
  }

  #start(rank: number, launch: Launch): RankProcess | undefined {
    if (launch.kind === 'join') return undefined;
    const child = launch.kind === 'local' ? forkRank(rank, this.#options) : runCommand(launch);
    const started = watch(child, (exit) => {
      if (this.#ranks[rank] === started) this.#options.onExit(rank, exit);
    });
    return started;
  }

  #signal(signal: NodeJS.Signals): void {
    for (const rank of this.#ranks) if (rank !== undefined && isRunning(rank.child)) rank.child.kill(signal);
  }

  /** Runs while the process exits: nothing here may wait. */
  #kill(): void {
    this.#signal('SIGKILL');
    removeRunFolder(this.#options.endpoint);
  }
}

/**
 * A rank's process is kept small: worker/weights.ts frees what it has read, the young generation of JavaScript's heap stays
 * at 2 MB, and glibc keeps one heap instead of one per thread. Together 36 MB less for each rank, at the same speed.
 */
export const rankExecArgv: readonly string[] = ['--expose-gc', '--max-semi-space-size=2'];
export const rankEnv: Readonly<Record<string, string>> = { MALLOC_ARENA_MAX: '1' };

/** The rank program. Child processes run the compiled program, also when this file runs from source (tests). */
export function rankProgram(): string {
  const fromSource = import.meta.url.endsWith('.ts');
  const path = fileURLToPath(new URL(fromSource ? '../dist/worker/main.js' : '../worker/main.js', import.meta.url));
  if (existsSync(path)) return path;
  throw new ConfigError(`rank program ${path}: not found; build it first (npm run build)`);
}

function forkRank(rank: number, { endpoint, token, keys, heapLimitMb }: LaunchOptions): ChildProcess {
  const { TPLA_KEYS: _, ...env } = process.env;
  return fork(rankProgram(), ['--connect', endpoint, '--rank', String(rank), '--token', token], {
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    execArgv: heapLimitMb === undefined ? [...rankExecArgv] : [...rankExecArgv, `--max-old-space-size=${heapLimitMb}`],
    env: { ...rankEnv, ...env, ...(keys === undefined ? {} : { TPLA_KEYS: JSON.stringify(keys) }) },
    detached,
  });
}

function runCommand({ command, args, input }: Extract<Launch, { kind: 'command' }>): ChildProcess {
  const child = spawn(command, args, { stdio: 'pipe', detached });
  // A program that has ended takes no input; its exit says so.
  child.stdin.on('error', () => undefined);
  child.stdin.write(input);
  return child;
}

function watch(child: ChildProcess, onExit: (exit: ProcessExit) => void): RankProcess {
  const state: RankProcess = {
    child,
    output: '',
    // 'close' comes after the last output, and also when the process could not be started.
    exited: new Promise((resolve) => child.once('close', () => resolve())),
  };
  const keep = (text: string): void => {
    state.output = (state.output + text).slice(-keptOutput);
  };
  child.stdout?.setEncoding('utf8').on('data', keep);
  child.stderr?.setEncoding('utf8').on('data', keep);
  child.once('error', (error) => keep(`${error.message}\n`));
  child.once('close', (code, signal) => onExit({ code, signal, output: state.output }));
  return state;
}

function isRunning(child: ChildProcess): boolean {
  return child.pid !== undefined && child.exitCode === null && child.signalCode === null;
}

/** Whether it has by then. */
export async function endsWithin(ended: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), ms);
  });
  try {
    return await Promise.race([ended.then(() => true), late]);
  } finally {
    clearTimeout(timer);
  }
}
