/**
 * The processes of the ranks of this machine: starts them, keeps the end of what they print, says when one ends, and
 * ends them all: a message first (the caller's), then SIGTERM, then SIGKILL. No process outlives the coordinator: a
 * rank exits when its IPC channel closes, and an exit hook kills what is left. Read next: control-loop.ts.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { ConfigError } from '../config/errors.ts';
import { removeRunFolder } from '../collective/endpoint.ts';
import type { ProcessExit } from './failures.ts';

export interface LaunchOptions {
  readonly worldSize: number;
  /** Control endpoint that the ranks connect to; the folder of its socket file is removed when everything has ended. */
  readonly endpoint: string;
  readonly token: string;
  readonly onExit: (rank: number, exit: ProcessExit) => void;
}

/** Between SIGTERM and SIGKILL. */
const afterTermMs = 5000;
const keptOutput = 4000;

interface RankProcess {
  readonly child: ChildProcess;
  output: string;
  readonly exited: Promise<void>;
}

export class RankProcesses {
  readonly #ranks: RankProcess[] = [];
  readonly #options: LaunchOptions;
  readonly #killAll = (): void => this.#kill();

  constructor(options: LaunchOptions) {
    this.#options = options;
    process.on('exit', this.#killAll);
    for (let rank = 0; rank < options.worldSize; rank++) this.#ranks.push(this.#start(rank));
  }

  pidOf(rank: number): number | undefined {
    return this.#ranks[rank]?.child.pid;
  }

  /** Kills the rank's process, if it still runs, and starts another. Resolves when the old one is gone. */
  async replace(rank: number): Promise<void> {
    const old = this.#ranks[rank];
    // From here on the old process is nobody's: its end is not reported.
    this.#ranks[rank] = this.#start(rank);
    if (old === undefined) return;
    if (isRunning(old.child)) old.child.kill('SIGKILL');
    await old.exited;
  }

  /**
   * Ends every process and removes the folder; returns when all are gone. Call after sending `stop`.
   * @param patienceMs for leaving by themselves, before SIGTERM
   */
  async end(patienceMs: number): Promise<void> {
    const all = Promise.all(this.#ranks.map((rank) => rank.exited));
    if (!(await endsWithin(all, patienceMs))) {
      this.#signal('SIGTERM');
      if (!(await endsWithin(all, afterTermMs))) this.#signal('SIGKILL');
    }
    await all;
    process.off('exit', this.#killAll);
    removeRunFolder(this.#options.endpoint);
  }

  #start(rank: number): RankProcess {
    const started = start(rank, this.#options, (exit) => {
      if (this.#ranks[rank] === started) this.#options.onExit(rank, exit);
    });
    return started;
  }

  #signal(signal: NodeJS.Signals): void {
    for (const { child } of this.#ranks) if (isRunning(child)) child.kill(signal);
  }

  /** Runs while the process exits: nothing here may wait. */
  #kill(): void {
    this.#signal('SIGKILL');
    removeRunFolder(this.#options.endpoint);
  }
}

/** Child processes run the compiled program, also when this file runs from source (tests). */
function workerScript(): string {
  const fromSource = import.meta.url.endsWith('.ts');
  const path = fileURLToPath(new URL(fromSource ? '../dist/worker/main.js' : '../worker/main.js', import.meta.url));
  if (existsSync(path)) return path;
  throw new ConfigError(`rank program ${path}: not found; build it first (npm run build)`);
}

function start(rank: number, options: LaunchOptions, onExit: (exit: ProcessExit) => void): RankProcess {
  const args = ['--connect', options.endpoint, '--rank', String(rank), '--token', options.token];
  const child = fork(workerScript(), args, {
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    // worker/weights.ts frees what it has read.
    execArgv: ['--expose-gc'],
    // Its own process group: Ctrl-C in a terminal reaches the coordinator alone, which stops the ranks in order.
    detached: process.platform !== 'win32',
  });
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

async function endsWithin(ended: Promise<unknown>, ms: number): Promise<boolean> {
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
