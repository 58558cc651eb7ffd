/**
 * What a command gets from its surroundings, so that it touches no global: streams, environment, the interruption.
 * The answer goes to stdout and nothing else does; everything for the eye goes to stderr.
 */
import { ConfigError } from '../config/errors.ts';
import type { FetchContext } from './fetch.ts';
import { processTerminal, type Terminal } from './terminal/terminal.ts';

export interface CommandContext extends FetchContext {
  /** Part of the answer, on stdout. */
  readonly write: (text: string) => void;
  /** All of standard input. */
  readonly readInput: () => Promise<Uint8Array>;
  readonly inputIsTerminal: boolean;
  /** Where a person types and reads; undefined: nowhere, or input or stderr goes elsewhere. */
  readonly terminal: Terminal | undefined;
}

/** Ctrl-C or SIGTERM: the run ends, and everything it started with it. Exit code 128 + the signal's number. */
export class Interruption extends Error {
  override readonly name = 'Interruption';
  readonly exitCode: number;

  constructor(signal: 'SIGINT' | 'SIGTERM') {
    super(`interrupted by ${signal}`);
    this.exitCode = signal === 'SIGINT' ? 130 : 143;
  }
}

/** The signal is aborted by the first SIGINT or SIGTERM; a second ends the process at once (exit hooks kill the ranks). */
export function processContext(): CommandContext {
  const controller = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const)
    process.on(name, () => {
      const interruption = new Interruption(name);
      if (controller.signal.aborted) process.exit(interruption.exitCode);
      process.stderr.write(`${name}: stopping; once more to stop at once\n`);
      controller.abort(interruption);
    });
  // A reader that has gone (`tpla run | head`) wants no more: that is no error of ours.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0);
    throw error;
  });
  return {
    env: process.env,
    log: (line) => void process.stderr.write(`${line}\n`),
    write: (text) => void process.stdout.write(text),
    signal: controller.signal,
    readInput: readAllInput,
    inputIsTerminal: process.stdin.isTTY,
    terminal: processTerminal(),
  };
}

/** @throws ConfigError naming the first byte that is not UTF-8 */
export function decodeUtf8(bytes: Uint8Array, where: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new ConfigError(`${where}: not valid UTF-8 at byte ${firstInvalidByte(bytes)}; convert it to UTF-8`, {
      cause,
    });
  }
}

async function readAllInput(): Promise<Uint8Array> {
  const chunks: Buffer[] = [];
  for await (const chunk of process.stdin) chunks.push(Buffer.isBuffer(chunk) ? chunk : Buffer.from(String(chunk)));
  return Buffer.concat(chunks);
}

/** Bisection: a prefix that ends inside a sequence is still good when decoded as a stream. */
function firstInvalidByte(bytes: Uint8Array): number {
  let good = 0;
  let bad = bytes.length + 1;
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    if (isPrefixOfUtf8(bytes.subarray(0, middle))) good = middle;
    else bad = middle;
  }
  return good;
}

function isPrefixOfUtf8(bytes: Uint8Array): boolean {
  try {
    new TextDecoder('utf-8', { fatal: true }).decode(bytes, { stream: true });
    return true;
  } catch {
    return false;
  }
}
