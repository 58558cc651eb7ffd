/** Text tables for a terminal, and the words in which numbers are shown. */

/** Columns as wide as their widest cell; the first is left-aligned, numbers stand at the right. */
export function formatTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((cell, column) => Math.max(cell.length, ...rows.map((row) => (row[column] ?? '').length)));
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0)))
      .join('  ');
  return [line(header), ...rows.map(line)].join('\n');
}

/** 98.4 MB, 1.2 GB: decimal units, as disks and links are sold. */
export function formatBytes(bytes: number): string {
  for (const [name, unit] of [
    ['GB', 1e9],
    ['MB', 1e6],
    ['kB', 1e3],
  ] as const)
    if (bytes >= unit) return `${(bytes / unit).toFixed(1)} ${name}`;
  return `${Math.round(bytes)} B`;
}

export function formatMs(ms: number): string {
  return ms >= 10_000 ? `${(ms / 1000).toFixed(1)} s` : `${ms.toFixed(ms >= 100 ? 0 : 1)} ms`;
}

/** 3..6, or a dash for nothing. */
export function formatRange({ start, end }: { start: number; end: number }): string {
  return end > start ? `${start}..${end - 1}` : '-';
}
