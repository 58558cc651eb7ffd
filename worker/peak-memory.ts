/** The most memory that this process has had. */
import { readFileSync } from 'node:fs';

/**
 * Resident bytes at their highest. On Linux from /proc: what getrusage reports there begins with the size of the process
 * that started this one.
 */
export function peakRssBytes(): number {
  if (process.platform === 'linux') {
    const [, kilobytes] = /^VmHWM:\s*(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
    if (kilobytes !== undefined) return Number(kilobytes) * 1024;
  }
  return process.resourceUsage().maxRSS * 1024;
}
