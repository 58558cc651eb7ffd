/**
 * What went wrong with ranks, and the one error a user reads: the failure that caused the others first, the ranks that
 * failed because of it under it. Pure: control-loop.ts collects, this explains.
 */
import { ConfigError, InvariantError, PeerError } from '../config/errors.ts';
import type { Failed } from '../collective/messages.ts';

export interface ProcessExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** The end of what the process wrote to stdout and stderr. */
  readonly output: string;
}

/** A rank on another machine is not there; what to do about it stands in the message. */
export class RankAbsent extends PeerError {}

/** All that is known of one rank's failure; at least one of the three is there. */
export interface RankFailure {
  readonly rank: number;
  readonly pid: number | undefined;
  /** Of a rank on another machine. */
  readonly host?: string | undefined;
  /** What the rank said itself. */
  readonly failed?: Failed;
  /** How its process ended. */
  readonly exit?: ProcessExit;
  /** What the coordinator noticed: a missing answer. */
  readonly late?: string;
}

/**
 * @param failures in the order they became known  @param doing 'while loading', 'during request 7'
 * @returns ConfigError when the cause is one a user can fix, else PeerError or InvariantError as the cause says
 */
export function explainFailures(failures: readonly RankFailure[], doing: string): Error {
  const ordered = [...failures].sort((a, b) => causeOrder(a) - causeOrder(b));
  const [cause, ...consequences] = ordered;
  if (cause === undefined) return new InvariantError('a failure was reported without a rank');
  const text = [describe(cause, doing), ...consequences.map((failure) => `  then ${describe(failure, doing)}`)].join(
    '\n',
  );
  switch (cause.failed?.error) {
    case 'ConfigError':
      return new ConfigError(text);
    case 'InvariantError':
      return new InvariantError(text);
    case 'PeerError':
    case undefined:
      return new PeerError(text);
  }
}

/** Small comes first. A rank that complains of a peer, or exits after such a complaint, is rarely the cause. */
function causeOrder(failure: RankFailure): number {
  if (failure.failed === undefined) return failure.exit === undefined ? 3 : 0;
  return failure.failed.error === 'PeerError' ? 2 : 1;
}

function describe(failure: RankFailure, doing: string): string {
  const { rank, pid, host, failed, exit, late } = failure;
  if (failed !== undefined)
    return failed.message.startsWith(`rank ${rank}:`) ? failed.message : `rank ${rank}: ${failed.message}`;
  const who =
    pid === undefined ? `rank ${rank}` : `rank ${rank} (process ${pid}${host === undefined ? '' : ` on ${host}`})`;
  if (exit === undefined) return `${who}: ${late ?? 'failed'}`;
  const shortage = outOfMemory.exec(exit.output)?.[0];
  if (shortage !== undefined && exit.signal !== null)
    return `${who} ran out of memory (${exit.signal}) ${doing}; it printed: ${shortage}`;
  const output = exit.output.trim();
  return `${who} ${howItEnded(exit)} ${doing}${output === '' ? '; it printed nothing' : `; it printed last: ${lastLines(output)}`}`;
}

/** What V8, or a native library without a better idea, says before it aborts. */
const outOfMemory = /FATAL ERROR: .*(heap out of memory|invalid array length.*|out of memory)|.*std::bad_alloc.*/i;

function howItEnded(exit: ProcessExit): string {
  if (exit.signal === 'SIGKILL') return 'was killed by SIGKILL (out of memory?)';
  if (exit.signal !== null) return `was ended by ${exit.signal}`;
  return `exited with code ${exit.code}`;
}

/** The last lines in one, so that a message stays a line; stack traces of a dead process are the exception. */
function lastLines(output: string): string {
  return output
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '')
    .slice(-4)
    .join(' | ');
}
