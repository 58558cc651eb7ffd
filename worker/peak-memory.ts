/** The memory that this process has, and the most that it has had. */
import { readFileSync } from 'node:fs';

export interface MemoryUse {
  readonly rssBytes: number;
  readonly peakRssBytes: number;
}

/** Between looks: what a decode step takes changes slowly, and both questions cost as much as a small product. */
const lookEveryMs = 250;

/** Looks seldom, and misses no peak: the system keeps it. */
export class MemoryWatch {
  private latest = memoryUse();
  private lookedAt = performance.now();

  /** @param anew also if the last look was just now */
  look(anew: boolean): MemoryUse {
    const now = performance.now();
    if (anew || now - this.lookedAt >= lookEveryMs) {
      this.latest = memoryUse();
      this.lookedAt = now;
    }
    return this.latest;
  }
}

function memoryUse(): MemoryUse {
  const rssBytes = process.memoryUsage.rss();
  // Linux brings its own count of pages up to date with a delay.
  return { rssBytes, peakRssBytes: Math.max(rssBytes, peakRssBytes()) };
}

/**
 * Resident bytes at their highest. On Linux from /proc: what getrusage reports there begins with the size of the process
 * that started this one.
 */
function peakRssBytes(): number {
  if (process.platform === 'linux') {
    const [, kilobytes] = /^VmHWM:\s*(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
    if (kilobytes !== undefined) return Number(kilobytes) * 1024;
  }
  return process.resourceUsage().maxRSS * 1024;
}
