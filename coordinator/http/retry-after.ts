/** How long a client should wait when the queue is full: until, at the present rate, some of it is done. */
import type { ServerParts } from './parts.ts';

const maxSeconds = 60;
/** Taken where nothing has ended yet. */
const typicalTokens = 100;

export function retryAfterSeconds({ scheduler, activity }: ServerParts): number {
  const rate = activity.rates().generatedTokensPerSecond;
  const waiting = Math.max(1, scheduler.queued / 2);
  const seconds = rate > 0 ? (waiting * typicalTokens) / rate : 1;
  return Math.max(1, Math.min(maxSeconds, Math.ceil(seconds)));
}
