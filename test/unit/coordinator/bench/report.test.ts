import { describe, expect, it } from 'vitest';
import { benchPage } from '../../../../coordinator/bench/page.ts';
import {
  compare,
  markdownReport,
  slowerWithMoreRanks,
  spreadOf,
  terminalReport,
  type BenchReport,
  type BenchRow,
} from '../../../../coordinator/bench/report.ts';

function row(scheme: BenchRow['scheme'], ranks: number, decode: number, context = 32): BenchRow {
  const spread = { median: decode, min: decode - 1, max: decode + 2 };
  return {
    scheme,
    ranks,
    context,
    batch: 1,
    repetitions: 3,
    prefillTokensPerSecond: 10 * decode,
    prefillSpread: spread,
    decodeTokensPerSecond: decode,
    decodeSpread: spread,
    ttftMs: 5,
    ttftSpread: spread,
    stepMs: 1000 / decode,
    computeMs: 4,
    waitMs: 250 / decode,
    cacheBytesPerTokenPerRank: 23_040 / ranks,
    bytesPerTokenPerRank: 1234,
    divergence: 2e-4,
    transport: 'shared memory',
    perRank: [],
  };
}

function reportOf(rows: readonly BenchRow[]): BenchReport {
  return {
    model: 'a <b> & "c"',
    rows: compare(rows),
    skipped: [{ scheme: 'mla', ranks: 2, reason: 'no latent' }],
    notes: slowerWithMoreRanks(rows),
    machine: { platform: 'linux x64', cpu: 'a CPU', cores: 2, memoryBytes: 8e9 },
    versions: { tpla: '0.1.0', node: '20.19.0', ggml: '1.2.3', zeromq: '6.0.0', gpujs: undefined },
    commit: 'abc1234',
    options: { decode: 32 },
  };
}

describe('results of bench', () => {
  it('takes the middle value, or the mean of the two', () => {
    expect(spreadOf([7, 1, 3])).toEqual({ median: 3, min: 1, max: 7 });
    expect(spreadOf([7, 1, 3, 4])).toEqual({ median: 3.5, min: 1, max: 7 });
  });

  it('compares with one rank of the same context, of the same scheme where there is one', () => {
    const rows = compare([
      row('mla', 1, 50),
      row('tpla', 1, 40),
      row('tpla', 2, 60),
      row('dcp', 4, 60),
      row('mla', 2, 9, 64),
    ]);
    expect(rows.map(({ speedUp }) => speedUp)).toEqual([1, 1, 1.5, 1.2, null]);
    expect(rows.map(({ efficiency }) => efficiency)).toEqual([1, 1, 0.75, 0.3, null]);
  });

  it('says where fewer ranks are faster, and how long ranks wait', () => {
    expect(slowerWithMoreRanks([row('mla', 1, 50), row('mla', 2, 80), row('mla', 3, 60)])).toEqual([
      'mla on 3 ranks at 32 tokens is slower than mla on 2: 60.0 against 80.0 tokens/s; ranks wait for each other 25 % of a step',
    ]);
  });

  it('prints the same table to the terminal and as Markdown', () => {
    const report = reportOf([row('gqa', 1, 50), row('gqa', 2, 80)]);
    const [header, first, second] = terminalReport(report).split('\n');
    expect(header).toMatch(/^scheme +ranks +context/);
    expect(first).toMatch(/^gqa +1 +32 +1 +500 +50\.0 +49\.0\.\.52\.0 .*1\.00 x +100 % +2\.0e-4$/);
    expect(second).toMatch(/11\.5 kB +1\.2 kB +1\.60 x +80 %/);
    const markdown = markdownReport(report);
    expect(markdown).toContain('| gqa | 2 | 32 | 1 | 800 | 80.0 |');
    expect(markdown).toContain('- left out: mla on 2 ranks: no latent');
  });
});

describe('the page of bench', () => {
  const page = benchPage(reportOf([row('gqa', 1, 50), row('gqa', 2, 80), row('gqa', 2, 70, 512)]));

  it('loads nothing and runs nothing', () => {
    expect(page).not.toMatch(/<script|<link|<img|url\(|https?:|@import/);
  });

  it('escapes names', () => {
    expect(page).toContain('<h1>tpla bench: a &lt;b&gt; &amp; &quot;c&quot;</h1>');
  });

  it('draws every chart for every context, with finite numbers', () => {
    expect(page.match(/<figure>/g)).toHaveLength(7);
    expect(page).toContain('Decode at 512 tokens of context, tokens/s');
    expect(page).not.toMatch(/NaN|Infinity|undefined/);
  });
});
