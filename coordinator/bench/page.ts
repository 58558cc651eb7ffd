/**
 * The result of `tpla bench` as one HTML file: table and charts, drawn as SVG here, without scripts and without anything
 * to load. Colours follow the reader's light or dark setting.
 */
import { cellsOf, describeSetting, tableHeader, type BenchReport, type BenchRow } from './report.ts';

interface Bar {
  readonly label: string;
  /** Stacked from the bottom. */
  readonly parts: readonly { readonly name: string; readonly value: number }[];
  /** Line from .. to over the bar. */
  readonly spread?: readonly [from: number, to: number];
}

interface Chart {
  readonly title: string;
  readonly unit: string;
  readonly bars: readonly Bar[];
}

const palette = ['#3b76c4', '#e08a2e', '#6aa84f'];

export function benchPage(report: BenchReport): string {
  const title = `tpla bench: ${report.model}`;
  const notes = [
    ...report.notes,
    ...report.skipped.map(({ scheme, ranks, reason }) => `left out: ${scheme} on ${ranks} ranks: ${reason}`),
  ];
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(title)}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 2rem 0; }
figcaption { font-weight: 600; }
svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; font: 12px system-ui, sans-serif; }
</style>
</head>
<body>
<h1>${escape(title)}</h1>
<p>${escape(describeSetting(report))}</p>
${table(report)}
${notes.length === 0 ? '' : `<ul>${notes.map((note) => `<li>${escape(note)}</li>`).join('')}</ul>`}
${chartsOf(report.rows).map(figure).join('\n')}
</body>
</html>
`;
}

function table({ rows }: BenchReport): string {
  const cells = (tag: 'th' | 'td', texts: readonly string[]): string =>
    `<tr>${texts.map((text) => `<${tag}>${escape(text)}</${tag}>`).join('')}</tr>`;
  const body = rows.map((row) => cells('td', cellsOf(row))).join('');
  // Wider than a window: what scrolls must be reached by the keyboard.
  return `<div tabindex="0" role="region" aria-label="Measurements"><table><thead>${cells('th', tableHeader())}</thead><tbody>${body}</tbody></table></div>`;
}

function chartsOf(rows: readonly BenchRow[]): Chart[] {
  const groups = new Map<string, BenchRow[]>();
  for (const row of rows) {
    const key = `${row.context} tokens of context${row.batch > 1 ? `, ${row.batch} sequences` : ''}`;
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  const label = (row: BenchRow): string => `${row.scheme} x${row.ranks}`;
  const first = [...groups.values()][0] ?? [];
  return [
    ...[...groups].flatMap(([where, some]): Chart[] => [
      {
        title: `Decode at ${where}`,
        unit: 'tokens/s',
        bars: some.map((row) => ({
          label: label(row),
          parts: [{ name: 'decode', value: row.decodeTokensPerSecond }],
          spread: [row.decodeSpread.min, row.decodeSpread.max],
        })),
      },
      ...prefillCharts(where, some, label),
      {
        title: `Where the time of a decode step goes, at ${where}`,
        unit: 'ms',
        bars: some.map((row) => ({
          label: label(row),
          parts: [
            { name: 'compute', value: row.computeMs },
            { name: 'wait for other ranks', value: row.waitMs },
            { name: 'coordinator and messages', value: Math.max(0, row.stepMs - row.computeMs - row.waitMs) },
          ],
        })),
      },
    ]),
    {
      title: 'Cache of one token on one rank',
      unit: 'bytes',
      bars: first.map((row) => ({
        label: label(row),
        parts: [{ name: 'cache', value: row.cacheBytesPerTokenPerRank }],
      })),
    },
  ];
}

const size = { width: 720, height: 280, left: 70, bottom: 40, top: 30 };

function figure({ title, unit, bars }: Chart): string {
  const total = (bar: Bar): number => bar.parts.reduce((sum, { value }) => sum + value, 0);
  const top = niceCeiling(Math.max(...bars.map((bar) => Math.max(total(bar), bar.spread?.[1] ?? 0))));
  const plotHeight = size.height - size.bottom - size.top;
  const y = (value: number): number => size.height - size.bottom - (value / top) * plotHeight;
  const slot = (size.width - size.left) / Math.max(1, bars.length);
  const width = Math.min(80, slot * 0.6);
  const lines = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const at = y(share * top).toFixed(1);
    return `<line x1="${size.left}" x2="${size.width}" y1="${at}" y2="${at}" stroke="#8884"/><text x="${size.left - 6}" y="${at}" dy="4" text-anchor="end">${shortNumber(share * top)}</text>`;
  });
  const drawn = bars.map((bar, i) => {
    const middle = size.left + slot * (i + 0.5);
    let below = 0;
    const rects = bar.parts.map(({ name, value }, part) => {
      const rect = `<rect x="${(middle - width / 2).toFixed(1)}" y="${y(below + value).toFixed(1)}" width="${width.toFixed(1)}" height="${(y(below) - y(below + value)).toFixed(1)}" fill="${palette[part] ?? '#888'}"><title>${escape(`${bar.label}, ${name}: ${shortNumber(value)} ${unit}`)}</title></rect>`;
      below += value;
      return rect;
    });
    const spread =
      bar.spread === undefined
        ? ''
        : `<line x1="${middle}" x2="${middle}" y1="${y(bar.spread[0]).toFixed(1)}" y2="${y(bar.spread[1]).toFixed(1)}" stroke="currentColor"/>`;
    const value = `<text x="${middle}" y="${(y(Math.max(below, bar.spread?.[1] ?? 0)) - 5).toFixed(1)}" text-anchor="middle">${shortNumber(below)}</text>`;
    const name = `<text x="${middle}" y="${size.height - size.bottom + 18}" text-anchor="middle">${escape(bar.label)}</text>`;
    return rects.join('') + spread + value + name;
  });
  const names = bars[0]?.parts.map(({ name }) => name) ?? [];
  const legend =
    names.length < 2
      ? ''
      : `<p>${names.map((name, i) => `<span style="color:${palette[i] ?? '#888'}">&#9632;</span> ${escape(name)}`).join(' &nbsp; ')}</p>`;
  return `<figure><figcaption>${escape(title)}, ${escape(unit)}</figcaption><svg viewBox="0 0 ${size.width} ${size.height}" role="img" aria-label="${escape(title)}">${lines.join('')}${drawn.join('')}</svg>${legend}</figure>`;
}

/** 1, 2 or 5 times a power of ten, not below the value. */
function niceCeiling(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return ([1, 2, 5].find((step) => step * power >= value) ?? 10) * power;
}

function shortNumber(value: number): string {
  return value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

function escape(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}

/** None where prompts were not run. */
function prefillCharts(where: string, rows: readonly BenchRow[], label: (row: BenchRow) => string): Chart[] {
  if (rows.every((row) => row.prefillTokensPerSecond === 0)) return [];
  return [
    {
      title: `Prefill at ${where}`,
      unit: 'tokens/s',
      bars: rows.map((row) => ({
        label: label(row),
        parts: [{ name: 'prefill', value: row.prefillTokensPerSecond }],
        spread: [row.prefillSpread.min, row.prefillSpread.max],
      })),
    },
  ];
}
