import { expect, it } from 'vitest';
import type { ConversionReport } from '../../../../coordinator/convert/conversion-options.ts';
import { reportPage } from '../../../../coordinator/convert/report-page.ts';

const report: ConversionReport = {
  method: 'recipe',
  exact: false,
  originalPpl: 20,
  afterRopePpl: 21,
  afterRankPpl: 25,
  cacheFloatsBefore: 384,
  cacheFloatsAfter: 192,
  nearTokens: { sinks: 0, window: 0 },
  ropeDim: 48,
  kvRank: 144,
  freqfold: 1,
  balance: null,
  seed: 1,
  dtype: 'f16',
  calibration: '<b>&"text".txt',
  calibrationTokens: 8192,
  heldOutTokens: 2048,
  calibrationHash: 'ab',
  sourceIdentity: 'cd',
  without: [],
  layers: [],
  seconds: 12,
  stageSeconds: { calibrate: 8, convert: 4 },
};

it('says what was converted and what it cost, as numbers and as bars', () => {
  const page = reportPage(report, { architecture: 'llama', numLayers: 30, outputBytes: 157_400_000 });
  expect(page).toContain(
    "The cache takes 50 % of the source's numbers; perplexity on held-out text went from 20.00 to 25.00 (25.0 % more).",
  );
  expect(page).toContain('11.5 kB instead of 23.0 kB');
  // The largest perplexity is as wide as bars can be, the others in proportion from zero.
  expect(page).toContain('width="360.0"');
  expect(page).toContain('width="288.0"');
});

it('shows names as text and refers to nothing outside', () => {
  const page = reportPage(report, { architecture: '<script>', numLayers: 2, outputBytes: 1 });
  expect(page).not.toMatch(/<script|<b>|src=|href=|https?:/);
  expect(page).toContain('&#60;b&#62;&#38;&#34;text&#34;.txt');
});
