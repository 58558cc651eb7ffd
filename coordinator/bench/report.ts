/**
 * What `tpla bench` found, as data and as text: medians with their spread, speed-up against one rank, where the time of
 * a step goes. The page with charts is in page.ts.
 */
import type { Scheme } from '../../config/schemes.ts';
import type { Machine } from '../machine.ts';
import { formatBytes, formatTable } from '../table.ts';

/** Of the repetitions. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

export interface RankRow {
  readonly rank: number;
  /** Per decode step. */
  readonly computeMs: number;
  readonly waitMs: number;
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly weightBytes: number;
  readonly cacheBytesPerToken: number;
  readonly rssBytes: number;
}

export interface BenchRow {
  readonly scheme: Scheme;
  readonly ranks: number;
  readonly context: number;
  readonly batch: number;
  readonly repetitions: number;
  /** 0: prompts were not run, and ttftMs means nothing. */
  readonly prefillTokensPerSecond: number;
  readonly prefillSpread: Spread;
  /** Of all sequences together. */
  readonly decodeTokensPerSecond: number;
  readonly decodeSpread: Spread;
  readonly ttftMs: number;
  readonly ttftSpread: Spread;
  /** One decode step as the coordinator sees it. */
  readonly stepMs: number;
  /** Of a decode step, mean of the ranks. */
  readonly computeMs: number;
  readonly waitMs: number;
  readonly cacheBytesPerTokenPerRank: number;
  /** Sent to other ranks for one decode step. */
  readonly bytesPerTokenPerRank: number;
  /** Nats from the first measured cluster, checked before timing. */
  readonly divergence: number;
  readonly transport: string;
  readonly perRank: readonly RankRow[];
}

/** A combination that this model or machine does not allow. */
export interface Skipped {
  readonly scheme: string;
  readonly ranks: number;
  readonly reason: string;
}

export interface BenchReport {
  readonly model: string;
  readonly rows: readonly (BenchRow & Comparison)[];
  readonly skipped: readonly Skipped[];
  readonly notes: readonly string[];
  readonly machine: Pick<Machine, 'platform' | 'cpu' | 'cores' | 'memoryBytes'>;
  readonly versions: Pick<Machine, 'tpla' | 'node' | 'ggml' | 'zeromq' | 'gpujs'>;
  /** Of the program, where it runs from a git checkout. */
  readonly commit: string | null;
  readonly options: Readonly<Record<string, string | number>>;
}

export interface Comparison {
  /** Decode against one rank at the same context and batch; null without such a row. */
  readonly speedUp: number | null;
  /** speedUp / ranks */
  readonly efficiency: number | null;
}

export function spreadOf(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? 0;
  const median = sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? 0)) / 2;
  return { median, min: sorted[0] ?? 0, max: sorted.at(-1) ?? 0 };
}

/** Against one rank of the same scheme, or of any where the scheme has no such row. */
export function compare(rows: readonly BenchRow[]): (BenchRow & Comparison)[] {
  return rows.map((row) => {
    const alone = rows.filter((r) => r.ranks === 1 && r.context === row.context && r.batch === row.batch);
    const base = alone.find((r) => r.scheme === row.scheme) ?? alone[0];
    const speedUp = base === undefined ? null : row.decodeTokensPerSecond / base.decodeTokensPerSecond;
    return { ...row, speedUp, efficiency: speedUp === null ? null : speedUp / row.ranks };
  });
}

/** One line wherever fewer ranks decode faster. */
export function slowerWithMoreRanks(rows: readonly BenchRow[]): string[] {
  return rows.flatMap((row) => {
    const better = rows.filter(
      (other) =>
        other.context === row.context &&
        other.batch === row.batch &&
        other.ranks < row.ranks &&
        other.decodeTokensPerSecond > row.decodeTokensPerSecond,
    );
    const best = better.toSorted((a, b) => b.decodeTokensPerSecond - a.decodeTokensPerSecond)[0];
    if (best === undefined) return [];
    const share = row.stepMs === 0 ? 0 : row.waitMs / row.stepMs;
    return [
      `${row.scheme} on ${row.ranks} ranks at ${row.context} tokens is slower than ${best.scheme} on ${best.ranks}: ` +
        `${row.decodeTokensPerSecond.toFixed(1)} against ${best.decodeTokensPerSecond.toFixed(1)} tokens/s; ranks wait ` +
        `for each other ${(100 * share).toFixed(0)} % of a step`,
    ];
  });
}

const header = [
  'scheme',
  'ranks',
  'context',
  'batch',
  'prefill tok/s',
  'decode tok/s',
  'spread',
  'TTFT ms',
  'compute ms',
  'wait ms',
  'cache/token/rank',
  'sent/token/rank',
  'speed-up',
  'efficiency',
  'KL',
];

export function terminalReport(report: BenchReport): string {
  return [formatTable(header, report.rows.map(cellsOf)), ...footnotes(report)].join('\n');
}

export function markdownReport(report: BenchReport): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  const rule = header.map((_, i) => (i === 0 ? '---' : '---:'));
  return [
    `## tpla bench: ${report.model}`,
    '',
    describeSetting(report),
    '',
    line(header),
    line(rule),
    ...report.rows.map((row) => line(cellsOf(row))),
    '',
    ...footnotes(report).map((note) => `- ${note}`),
    '',
  ].join('\n');
}

export function describeSetting({ machine, versions, commit, options }: BenchReport): string {
  const set = Object.entries(options).map(([name, value]) => `${name} ${value}`);
  return (
    `${machine.cpu}, ${machine.cores} cores, ${formatBytes(machine.memoryBytes)}, ${machine.platform}; ` +
    `tpla ${versions.tpla}${commit === null ? '' : ` (${commit})`}, node ${versions.node}, ggml ${versions.ggml ?? 'missing'}; ${set.join(', ')}`
  );
}

export function cellsOf(row: BenchRow & Comparison): string[] {
  const { min, max } = row.decodeSpread;
  return [
    row.scheme,
    String(row.ranks),
    String(row.context),
    String(row.batch),
    row.prefillTokensPerSecond === 0 ? '-' : row.prefillTokensPerSecond.toFixed(0),
    row.decodeTokensPerSecond.toFixed(1),
    `${min.toFixed(1)}..${max.toFixed(1)}`,
    row.prefillTokensPerSecond === 0 ? '-' : row.ttftMs.toFixed(1),
    row.computeMs.toFixed(2),
    row.waitMs.toFixed(2),
    formatBytes(row.cacheBytesPerTokenPerRank),
    formatBytes(row.bytesPerTokenPerRank),
    row.speedUp === null ? '-' : `${row.speedUp.toFixed(2)} x`,
    row.efficiency === null ? '-' : `${(100 * row.efficiency).toFixed(0)} %`,
    row.divergence.toExponential(1),
  ];
}

export function tableHeader(): readonly string[] {
  return header;
}

function footnotes({ notes, skipped }: BenchReport): string[] {
  return [...notes, ...skipped.map(({ scheme, ranks, reason }) => `left out: ${scheme} on ${ranks} ranks: ${reason}`)];
}
