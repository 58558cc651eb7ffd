/**
 * The three kinds of failure and their exit codes. Every message says what, where, expected, got and the next step.
 * Nothing here prints: coordinator/main.ts and worker/main.ts turn an error into a line and an exit code.
 */

/** The user can fix it: a file, a flag, a key, a size. Exit code 2, no stack. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError';
  readonly exitCode = 2;
}

/** Another process died, is late, or sent something wrong. Exit code 3, no stack. */
export class PeerError extends Error {
  override readonly name = 'PeerError';
  readonly exitCode = 3;
}

/** A bug of ours. Exit code 70, with the stack. */
export class InvariantError extends Error {
  override readonly name = 'InvariantError';
  readonly exitCode = 70;
}

/** Asserts what only a bug of ours can break. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new InvariantError(message);
}

/** The text of any thrown value, for a message that wraps it; keep the value itself as `cause`. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Any thrown value as an error. */
export function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason));
}
