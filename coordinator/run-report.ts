/** What each rank did for one answer or for those of a chat: the document of `tpla run --json` and the table for people. */
import type { Cluster } from './cluster.ts';
import type { RankUsage, Usage } from './generation.ts';
import { formatBytes, formatMs, formatTable } from './table.ts';

export interface RunReport {
  readonly scheme: string;
  readonly ranks: number;
  readonly promptTokens: number;
  readonly generatedTokens: number;
  readonly timings: {
    readonly loadMs: number;
    readonly ttftMs: number;
    readonly prefillTokensPerSecond: number;
    readonly decodeTokensPerSecond: number;
  };
  readonly perRank: readonly RankReport[];
}

type RankReport = Usage['perRank'][number] & {
  readonly pid: number;
  readonly device: string;
  readonly transport: string;
  readonly weightBytes: number;
  /** Both measured by the rank. */
  readonly cacheBytesPerToken: number;
  readonly cacheBytes: number;
};

export function reportOf(cluster: Cluster, usage: Usage): RunReport {
  const { promptTokens, generatedTokens, ttftMs, prefillTokensPerSecond, decodeTokensPerSecond } = usage;
  return {
    scheme: cluster.plan.scheme,
    ranks: cluster.plan.worldSize,
    promptTokens,
    generatedTokens,
    timings: { loadMs: cluster.loadMs, ttftMs, prefillTokensPerSecond, decodeTokensPerSecond },
    perRank: cluster.ranks.flatMap(({ rank, pid, device, transport, weightBytes, cacheBytesPerToken, cacheBytes }) => {
      const sums = usage.perRank[rank];
      return sums === undefined
        ? []
        : [{ ...sums, pid, device, transport, weightBytes, cacheBytesPerToken, cacheBytes }];
    }),
  };
}

export function rankTable({ scheme, ranks, promptTokens, generatedTokens, timings, perRank }: RunReport): string {
  const header = ['rank', 'pid', 'compute', 'wait', 'sent', 'received', 'weights', 'cache/token', 'peak memory'];
  const rows = perRank.map((rank) => [
    String(rank.rank),
    String(rank.pid),
    formatMs(rank.computeMs),
    formatMs(rank.waitMs),
    formatBytes(rank.bytesSent),
    formatBytes(rank.bytesReceived),
    formatBytes(rank.weightBytes),
    formatBytes(rank.cacheBytesPerToken),
    formatBytes(rank.peakRssBytes),
  ]);
  const { loadMs, ttftMs, prefillTokensPerSecond, decodeTokensPerSecond } = timings;
  return (
    `${formatTable(header, rows)}\n` +
    `${scheme} on ${ranks} ranks (${perRank[0]?.transport ?? 'none'}): loaded in ${formatMs(loadMs)}, ` +
    `${promptTokens} prompt tokens at ${prefillTokensPerSecond.toFixed(1)}/s, first token after ${formatMs(ttftMs)}, ` +
    `${generatedTokens} generated at ${decodeTokensPerSecond.toFixed(1)}/s`
  );
}

/** Of several answers together: sums, and rates and waits as means. */
export function sumUsage(usages: readonly Usage[]): Usage {
  const total = (value: (usage: Usage) => number): number => usages.reduce((sum, usage) => sum + value(usage), 0);
  const generatedTokens = total((usage) => usage.generatedTokens);
  const promptTokens = total((usage) => usage.promptTokens);
  const reusedTokens = total((usage) => usage.reusedTokens);
  const secondsOf = (tokens: number, perSecond: number): number => (perSecond > 0 ? tokens / perSecond : 0);
  const decodeSeconds = total((usage) => secondsOf(usage.generatedTokens - 1, usage.decodeTokensPerSecond));
  const prefillSeconds = total((usage) =>
    secondsOf(usage.promptTokens - usage.reusedTokens, usage.prefillTokensPerSecond),
  );
  const decoded = total((usage) => (usage.decodeTokensPerSecond > 0 ? usage.generatedTokens - 1 : 0));
  return {
    promptTokens,
    reusedTokens,
    generatedTokens,
    ttftMs: total((usage) => usage.ttftMs) / Math.max(1, usages.length),
    prefillTokensPerSecond: prefillSeconds > 0 ? (promptTokens - reusedTokens) / prefillSeconds : 0,
    decodeTokensPerSecond: decodeSeconds > 0 ? decoded / decodeSeconds : 0,
    perRank: (usages[0]?.perRank ?? []).map(({ rank }, i) =>
      sumRank(
        rank,
        usages.flatMap((usage) => usage.perRank[i] ?? []),
      ),
    ),
  };
}

function sumRank(rank: number, parts: readonly RankUsage[]): RankUsage {
  const total = (value: (part: RankUsage) => number): number => parts.reduce((sum, part) => sum + value(part), 0);
  return {
    rank,
    computeMs: total((part) => part.computeMs),
    waitMs: total((part) => part.waitMs),
    bytesSent: total((part) => part.bytesSent),
    bytesReceived: total((part) => part.bytesReceived),
    peakRssBytes: Math.max(...parts.map((part) => part.peakRssBytes)),
  };
}
