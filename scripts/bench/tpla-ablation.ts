/**
 * What cutting the softmax costs, piece by piece: rotations (weighted: as converted), prefill exact or with the cut
 * arithmetic too, exact first and last tokens, corrections where --corrections has a fit for them. Perplexity of the
 * decoded part of each window, as a ratio to exact decode of the same model, and along the decoded tokens. Converted
 * models have no latent norm, so there is no norm to cut.
 *   node dist/scripts/bench/tpla-ablation.js --model DIR --text FILE --windows 2 --groups 2,4 --corrections DIR
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { loadClusterConfig, type ClusterFlags } from '../../config/load.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { fitFileName } from '../../model/tpla/decode-fit.ts';
import { Cluster } from '../../coordinator/cluster.ts';
import { score } from '../../coordinator/engine.ts';
import { formatTable } from '../../coordinator/table.ts';
import { openText, readGivenText } from '../../coordinator/text.ts';

const windowTokens = 1024;
const decodeFrom = 512;
const bucket = 128;

interface Setting extends ClusterFlags {
  readonly name: string;
}

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      model: { type: 'string', default: '' },
      text: { type: 'string', default: '' },
      windows: { type: 'string', default: '2' },
      groups: { type: 'string', default: '2' },
      corrections: { type: 'string', default: '' },
    },
  });
  await using checkpoint = await openCheckpoint(flags.model);
  const ids = (await openText(flags.model)).encode(await readGivenText(flags.text, '--text'));
  const windows = Array.from({ length: Number(flags.windows) }, (_, i) =>
    ids.slice(i * windowTokens, (i + 1) * windowTokens),
  );
  const exact = await measure(checkpoint, { name: 'exact', scheme: 'mla', ranks: 2 }, windows);
  const rows = [row('exact', exact, exact)];
  for (const setting of flags.groups.split(',').flatMap((groups) => settingsOf(Number(groups), flags.corrections))) {
    rows.push(row(setting.name, await measure(checkpoint, setting, windows), exact));
    console.error(rows.at(-1)?.join('  '));
  }
  const points = exact.map((_, i) => `from ${decodeFrom + i * bucket}`);
  console.log(formatTable(['setting', 'perplexity', 'ratio', ...points], rows));
}

function settingsOf(groups: number, folder: string): Setting[] {
  return (['weighted', 'pca', 'hadamard'] as const).flatMap((reparam) => {
    const base = { scheme: 'tpla', ranks: groups, reparam };
    const name = `${groups} groups, ${reparam}`;
    const none = { window: 0, sinks: 0 };
    const settings: Setting[] = [
      { ...base, ...none, name },
      { ...base, ...none, name: `${name}, prompt cut too`, prefill: 'sliced' },
      { ...base, name: `${name}, window 64 + 4`, window: 64, sinks: 4 },
    ];
    for (const exactTokens of [none, { window: 64, sinks: 4 }]) {
      const corrections = join(folder, reparam);
      if (folder === '' || !existsSync(join(corrections, fitFileName(groups, exactTokens)))) continue;
      const { window, sinks } = exactTokens;
      settings.push({ ...base, ...exactTokens, corrections, name: `${name}, window ${window} + ${sinks}, corrected` });
    }
    return settings;
  });
}

/** Mean negative log-likelihood along the decoded tokens, in buckets. */
async function measure(checkpoint: Checkpoint, { name, ...flags }: Setting, windows: number[][]): Promise<number[]> {
  const all = { ...flags, model: checkpoint.path, weights: 'f32', cacheType: 'f32', context: windowTokens };
  const config = await loadClusterConfig({ flags: all });
  await using cluster = await Cluster.start({ checkpoint, config, log: () => console.error(name) });
  const sums = new Array<number>(Math.ceil((windowTokens - decodeFrom - 1) / bucket)).fill(0);
  const counts = sums.map(() => 0);
  for (const ids of windows) {
    const nll = await score(cluster, { ids, decodeFrom });
    for (let t = decodeFrom + 1; t < windowTokens; t++) {
      const i = Math.floor((t - decodeFrom - 1) / bucket);
      sums[i] = (sums[i] ?? 0) + (nll[t] ?? 0);
      counts[i] = (counts[i] ?? 0) + 1;
    }
  }
  return sums.map((sum, i) => sum / (counts[i] ?? 1));
}

function row(name: string, nll: readonly number[], exact: readonly number[]): string[] {
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const ratios = nll.map((value, i) => Math.exp(value - (exact[i] ?? 0)).toFixed(3));
  const perplexity = Math.exp(mean(nll));
  return [name, perplexity.toFixed(2), (perplexity / Math.exp(mean(exact))).toFixed(3), ...ratios];
}

await main();
