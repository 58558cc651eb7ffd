/** Starts the program on a terminal of its own (by util-linux' `script`), types, and reads what it shows. */
import { spawn, spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Sandbox } from './program.ts';

const program = fileURLToPath(new URL('../../dist/coordinator/main.js', import.meta.url));

/** Other systems have another `script`. */
export const hasScript =
  process.platform === 'linux' &&
  spawnSync('script', ['--version'], { encoding: 'utf8' }).stdout?.includes('util-linux');

export const keys = { enter: '\r', interrupt: '\u0003', end: '\u0004', up: '\u001b[A' } as const;

export interface Terminal {
  /** Everything shown so far, control codes included. */
  readonly shown: () => string;
  readonly type: (text: string) => void;
  /** Resolves when the text is shown after what the wait before ended with. */
  readonly shows: (text: string) => Promise<void>;
  readonly exited: Promise<number | null>;
}

export function startOnTerminal(sandbox: Sandbox, args: readonly string[], env: Record<string, string> = {}): Terminal {
  const quoted = [process.execPath, program, ...args].map((arg) => `'${arg.replaceAll("'", `'\\''`)}'`).join(' ');
  const child = spawn('script', ['-qefc', quoted, '/dev/null'], {
    env: {
      ...process.env,
      TPLA_MODEL: '',
      TMPDIR: sandbox.folder,
      TPLA_CACHE: `${sandbox.folder}/cache`,
      TERM: 'xterm',
      ...env,
    },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  let shown = '';
  let seen = 0;
  const watchers = new Set<() => void>();
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    shown += text;
    watchers.forEach((look) => look());
  });
  const exited = new Promise<number | null>((resolve) => child.once('close', (code) => resolve(code)));
  const shows = (text: string): Promise<void> =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        const at = shown.indexOf(text, seen);
        if (at === -1) return;
        seen = at + text.length;
        watchers.delete(look);
        resolve();
      };
      watchers.add(look);
      look();
      void exited.then(() => reject(new Error(`ended without showing ${text}: ${shown.slice(seen)}`)));
    });
  return { shown: () => shown, type: (text) => child.stdin.write(text), shows, exited };
}
