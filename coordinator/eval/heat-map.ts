/** A grid of shares between 0 and 1 as an SVG picture that needs nothing else: colour and number in every cell. */

export interface HeatMap {
  readonly title: string;
  readonly columnTitle: string;
  readonly rowTitle: string;
  readonly columns: readonly string[];
  readonly rows: readonly string[];
  /** values[row][column], 0 to 1 */
  readonly values: readonly (readonly number[])[];
}

const cell = { width: 72, height: 34 };
const margin = { left: 96, top: 64, right: 16, bottom: 16 };

export function heatMapSvg({ title, columnTitle, rowTitle, columns, rows, values }: HeatMap): string {
  const width = Math.max(420, margin.left + columns.length * cell.width + margin.right);
  const height = margin.top + rows.length * cell.height + margin.bottom;
  const text = (x: number, y: number, content: string, anchor: 'start' | 'middle' | 'end'): string =>
    `<text x="${x}" y="${y}" text-anchor="${anchor}">${escape(content)}</text>`;
  const middle = (column: number): number => margin.left + (column + 0.5) * cell.width;
  const parts = [
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    text(12, 20, title, 'start'),
    text(12, margin.top - 10, rowTitle, 'start'),
    text(margin.left, 38, columnTitle, 'start'),
    ...columns.map((name, column) => text(middle(column), margin.top - 10, name, 'middle')),
    ...rows.map((name, row) => text(margin.left - 8, margin.top + row * cell.height + 22, name, 'end')),
    ...values.flatMap((line, row) =>
      line.map((value, column) => {
        const [x, y] = [margin.left + column * cell.width, margin.top + row * cell.height];
        const box = `<rect x="${x}" y="${y}" width="${cell.width - 2}" height="${cell.height - 2}" fill="${colour(value)}"/>`;
        return box + text(middle(column) - 1, y + 21, `${Math.round(100 * value)} %`, 'middle');
      }),
    ),
  ];
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    `font-family="system-ui, sans-serif" font-size="13" fill="#111">\n${parts.join('\n')}\n</svg>\n`
  );
}

/** From orange (0) over pale yellow to green (1), light enough for black text, told apart without red and green alone. */
function colour(value: number): string {
  const hue = 25 + 105 * value;
  const light = 62 + 18 * (1 - Math.abs(2 * value - 1));
  return `hsl(${hue.toFixed(0)} 70% ${light.toFixed(0)}%)`;
}

function escape(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}
