/**
 * The conversion report as a page for people, conversion_report.html: what was converted, what it cost, as numbers and as
 * bars. One file without scripts or references, so that it can be mailed. The same numbers are in conversion_report.json.
 */
import { recentRows } from '../../config/recent-numbers.ts';
import { formatBytes } from '../table.ts';
import type { ConversionReport } from './conversion-options.ts';

interface Bar {
  readonly label: string;
  readonly value: number;
  readonly text: string;
}

/** What the page says beyond the report. */
export interface PageFacts {
  readonly architecture: string;
  readonly numLayers: number;
  readonly outputBytes: number;
}

export function reportPage(report: ConversionReport, { architecture, numLayers, outputBytes }: PageFacts): string {
  const { cacheFloatsBefore: before, cacheFloatsAfter: after, ropeDim, kvRank } = report;
  const { sinks, window } = report.nearTokens;
  const rows: readonly (readonly [string, string])[] = [
    ['source', `${architecture}, ${numLayers} layers`],
    ['method', report.exact ? 'exact: nothing is approximated' : report.method],
    ['rope + latent', `${ropeDim} + ${kvRank} numbers per token and layer`],
    [
      'cache of a token, f16',
      `${formatBytes(2 * after * numLayers)} instead of ${formatBytes(2 * before * numLayers)}`,
    ],
    [
      'first and last tokens',
      sinks + window > 0
        ? `${sinks} and ${window} keep the source's ${before} numbers: ${formatBytes(4 * before * numLayers * recentRows(report.nearTokens))} per sequence`
        : 'as all others',
    ],
    ['weights written', `${formatBytes(outputBytes)}, converted matrices ${report.dtype}`],
    ['calibration', `${report.calibration}, ${report.calibrationTokens} tokens, seed ${report.seed}`],
    ['judged by', `${report.heldOutTokens} other tokens of the same text`],
    ['calibration sha256', report.calibrationHash],
    ['source identity', report.sourceIdentity],
  ];
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Conversion report</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } th { text-align: left; font-weight: normal; color: #57606a; padding-right: 1.5rem; vertical-align: top }
td { overflow-wrap: anywhere }
svg { display: block; width: 100% } text { font-size: 13px; fill: currentColor } rect { fill: #2f6fb0 }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 } th { color: #9aa4af } rect { fill: #4f93d8 } }
</style>
<h1>Conversion to a latent cache</h1>
<p>${escaped(summaryOf(report))}</p>
<table>${rows.map(([name, value]) => `<tr><th>${escaped(name)}</th><td>${escaped(value)}</td></tr>`).join('\n')}</table>
<h2>Perplexity on held-out text</h2>
${bars(perplexityBars(report))}
<h2>Cache numbers per token and layer</h2>
${bars([
  { label: 'source: keys and values', value: before, text: `${before}` },
  { label: 'converted: rope key', value: ropeDim, text: `${ropeDim}` },
  { label: 'converted: latent', value: kvRank, text: `${kvRank}` },
])}
<h2>Seconds</h2>
${bars(Object.entries(report.stageSeconds).map(([label, value]) => ({ label, value, text: value.toFixed(1) })))}
</html>
`;
}

function summaryOf({ cacheFloatsBefore, cacheFloatsAfter, originalPpl, afterRankPpl }: ConversionReport): string {
  const share = ((100 * cacheFloatsAfter) / cacheFloatsBefore).toFixed(0);
  const loss = (100 * (afterRankPpl / originalPpl - 1)).toFixed(1);
  return `The cache takes ${share} % of the source's numbers; perplexity on held-out text went from ${originalPpl.toFixed(2)} to ${afterRankPpl.toFixed(2)} (${loss} % more).`;
}

function perplexityBars({ originalPpl, afterRopePpl, afterRankPpl, ropeDim }: ConversionReport): Bar[] {
  const bar = (label: string, value: number): Bar => ({ label, value, text: value.toFixed(3) });
  return [
    bar('source', originalPpl),
    bar(`RoPE on ${ropeDim} numbers only`, afterRopePpl),
    bar('converted', afterRankPpl),
  ];
}

const rowHeight = 26;
const labelWidth = 230;
const barWidth = 360;

/** Horizontal bars from zero, each with its number. */
function bars(items: readonly Bar[]): string {
  const largest = Math.max(...items.map(({ value }) => value), Number.MIN_VALUE);
  const lines = items.map(({ label, value, text }, i) => {
    const width = Math.max(1, (value / largest) * barWidth).toFixed(1);
    const y = i * rowHeight;
    return `<text x="0" y="${y + 17}">${escaped(label)}</text><rect x="${labelWidth}" y="${y + 4}" width="${width}" height="18"/><text x="${(labelWidth + Number(width) + 6).toFixed(1)}" y="${y + 17}">${escaped(text)}</text>`;
  });
  return `<svg viewBox="0 0 ${labelWidth + barWidth + 90} ${items.length * rowHeight}" role="img">${lines.join('\n')}</svg>`;
}

function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);
}
