/**
 * Runs the built program as a user does, in a temporary folder of its own, so that a test can see what it leaves behind.
 * The build is made before the tests (`npm test`).
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const program = fileURLToPath(new URL('../../dist/coordinator/main.js', import.meta.url));

export interface Finished {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Running {
  readonly child: ChildProcess;
  readonly finished: Promise<Finished>;
  /** Resolves when stdout holds the text; rejects when the program ends without it. */
  readonly printed: (text: string) => Promise<void>;
}

export interface StartOptions {
  readonly input?: Uint8Array;
  readonly env?: Record<string, string>;
  /** Network namespace to run in. */
  readonly netns?: string;
}

/** A temporary folder that is TMPDIR and the cache of the programs started in it. */
export class Sandbox implements Disposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'tpla-test-'));

  start(args: readonly string[], options: StartOptions = {}): Running {
    const env = {
      ...process.env,
      TPLA_MODEL: '',
      TMPDIR: this.folder,
      TPLA_CACHE: join(this.folder, 'cache'),
      ...options.env,
    };
    const inHost = options.netns === undefined ? [] : ['ip', 'netns', 'exec', options.netns];
    const [command = '', ...rest] = [...inHost, process.execPath, program, ...args];
    const child = spawn(command, rest, { env, stdio: 'pipe' });
    child.stdin.end(options.input ?? new Uint8Array());
    let stdout = '';
    let stderr = '';
    const watchers = new Set<() => void>();
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      watchers.forEach((look) => look());
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    const finished = new Promise<Finished>((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }));
    });
    const printed = (text: string): Promise<void> =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          if (stdout.includes(text)) resolve();
        };
        watchers.add(look);
        look();
        finished.then(() => reject(new Error(`ended without printing ${text}: ${stderr}`)), reject);
      });
    return { child, finished, printed };
  }

  run(args: readonly string[], options: Parameters<Sandbox['start']>[1] = {}): Promise<Finished> {
    return this.start(args, options).finished;
  }

  /** What programs have left in the temporary folder, the cache aside. */
  leftovers(): string[] {
    return readdirSync(this.folder).filter((name) => name !== 'cache');
  }

  /** Rank processes whose control socket lies in this folder, by rank. */
  ranks(): Map<number, number> {
    return rankProcesses(this.folder);
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Process ids of running ranks whose command line holds `mark`, by rank. */
export function rankProcesses(mark: string): Map<number, number> {
  const { stdout } = spawnSync('ps', ['-A', '-ww', '-o', 'pid=,stat=,args='], { encoding: 'utf8' });
  const found = new Map<number, number>();
  for (const line of stdout.split('\n')) {
    const match = /^\s*(\d+)\s+(\S+)\s+.*worker\/main\.js .*--rank (\d+)/.exec(line);
    // A zombie has ended; its parent has not asked yet.
    if (match === null || !line.includes(mark) || match[2]!.startsWith('Z')) continue;
    found.set(Number(match[3]), Number(match[1]));
  }
  return found;
}

/** Returns when no rank is left; the test's own deadline bounds the wait. */
export async function untilNoRanks(mark: string): Promise<void> {
  while (rankProcesses(mark).size > 0) await new Promise((resolve) => setImmediate(resolve));
}
