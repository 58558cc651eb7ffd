/**
 * Ranks of the asked cluster, started and measured: sums of a short and of a long message, every element checked; the
 * links between hosts; the speed of their arithmetic, all ranks at once as in a step; the memory of their hosts.
 * Read next: check-links.ts, verdict.ts (what the numbers mean).
 */
import type { Cluster } from '../cluster.ts';
import type { SessionFlags } from '../session.ts';
import { openSession } from '../session.ts';
import type { CommandContext } from '../command-context.ts';
import { defaultSlots } from '../serving.ts';
import { checkLinks, type LinkCheck } from './check-links.ts';

/** 4 MB: what a prefill step sums; its time is all bandwidth. */
const longFloats = 1 << 20;
const longCount = 10;

export interface SumCheck {
  readonly floats: number;
  readonly count: number;
  readonly p50Us: number;
  readonly p99Us: number;
}

export interface RankSpeed {
  readonly rank: number;
  readonly host: string;
  readonly device: string;
  readonly gigabytesPerSecond: number;
  readonly gigaflopsPerSecond: number;
  readonly weightBytes: number;
  /** With every slot of `tpla serve` full to the context's end. */
  readonly fullCacheBytes: number;
  /** Of the rank's host, while the weights of all its ranks are loaded and the cache is empty. */
  readonly freeMemoryBytes: number;
  readonly memoryBytes: number;
}

export interface RankCheck {
  readonly scheme: string;
  readonly transport: string;
  readonly threads: number;
  readonly numLayers: number;
  readonly hiddenDim: number;
  readonly short: SumCheck;
  readonly long: SumCheck;
  /** Coordinator to each rank on another host; and of each two ranks, where sums go over sockets. */
  readonly links: readonly LinkCheck[];
  readonly ranks: readonly RankSpeed[];
}

/** @throws what starting a cluster throws; InvariantError naming the element when a sum is wrong */
export async function checkRanks(
  flags: SessionFlags,
  context: CommandContext,
  { floats, count }: { readonly floats: number; readonly count: number },
): Promise<RankCheck> {
  await using session = await openSession(flags, context);
  const { cluster, config, checkpoint } = session;
  const short = await checkSums(cluster, floats, count);
  const long = await checkSums(cluster, longFloats, longCount);
  const remote = config.ranks.flatMap(({ host }, rank) => (host === 'local' ? [] : [rank]));
  const links = await checkLinks(cluster, remote);
  const speeds = await cluster.checks.compute();
  const cacheTokens = cluster.options.contextTokens * (config.cache.slots || defaultSlots);
  return {
    scheme: cluster.plan.scheme,
    transport: cluster.ranks[0]?.transport ?? 'none',
    threads: config.compute.threads,
    numLayers: checkpoint.config.numLayers,
    hiddenDim: cluster.hiddenDim,
    short,
    long,
    links,
    ranks: cluster.ranks.map(({ rank, host, device, weightBytes, cacheBytesPerToken }, i) => ({
      rank,
      host,
      device,
      gigabytesPerSecond: speeds[i]?.gigabytesPerSecond ?? 0,
      gigaflopsPerSecond: speeds[i]?.gigaflopsPerSecond ?? 0,
      weightBytes,
      fullCacheBytes: cacheBytesPerToken * cacheTokens,
      freeMemoryBytes: speeds[i]?.freeMemoryBytes ?? 0,
      memoryBytes: speeds[i]?.memoryBytes ?? 0,
    })),
  };
}

async function checkSums(cluster: Cluster, floats: number, count: number): Promise<SumCheck> {
  const replies = await cluster.checks.collective(floats, count);
  // The slowest rank decides when the others go on.
  const sorted = replies.flatMap((reply) => reply.latenciesUs).sort((a, b) => a - b);
  const at = (share: number): number => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
  return { floats, count, p50Us: at(0.5), p99Us: at(0.99) };
}
