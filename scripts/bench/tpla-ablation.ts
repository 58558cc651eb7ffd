/**
 * What cutting costs, piece by piece, as in the ablation of the paper (TPLA, arXiv 2508.15881): each rotation with the
 * norm, the softmax or both cut, prompts exact or cut too; then exact first and last tokens, and corrections where
 * --corrections has a fit for them (DIR/REPARAM/). Loss of the decoded part of each window against exact decode of the
 * same model: perplexity of a text, or without --text, for random checkpoints, the divergence on random tokens.
 *   node dist/scripts/bench/tpla-ablation.js --model DIR --text FILE --windows 2 --groups 2,4 --corrections DIR
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { loadClusterConfig, type ClusterFlags } from '../../config/load.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { nearTokens } from '../../config/near-tokens.ts';
import { fitFileName } from '../../model/tpla/decode-fit.ts';
import { rotationFileName } from '../../model/tpla/rotation.ts';
import { Cluster } from '../../coordinator/cluster.ts';
import { score, windowLogits } from '../../coordinator/engine.ts';
import { divergenceOf } from '../../coordinator/eval/divergence.ts';
import { formatTable } from '../../coordinator/table.ts';
import { openText, readGivenText } from '../../coordinator/text.ts';

interface Setting extends ClusterFlags {
  readonly name: string;
}

interface Trial {
  readonly checkpoint: Checkpoint;
  readonly windows: readonly (readonly number[])[];
  readonly decodeFrom: number;
  /** Exact logits behind each decoded token of each window, where the loss is a divergence. */
  readonly reference: readonly Float32Array[] | undefined;
}

const exactly: Setting = { name: 'exact', scheme: 'mla', ranks: 2 };

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      model: { type: 'string', default: '' },
      text: { type: 'string', default: '' },
      windows: { type: 'string', default: '2' },
      'window-tokens': { type: 'string', default: '1024' },
      groups: { type: 'string', default: '2' },
      corrections: { type: 'string', default: '' },
    },
  });
  await using checkpoint = await openCheckpoint(flags.model);
  const length = Number(flags['window-tokens']);
  const count = Number(flags.windows);
  const ids =
    flags.text === ''
      ? randomTokens(count * length, checkpoint.config.vocabSize)
      : (await openText(flags.model)).encode(await readGivenText(flags.text, '--text'));
  const windows = Array.from({ length: count }, (_, i) => ids.slice(i * length, (i + 1) * length));
  const plain: Trial = { checkpoint, windows, decodeFrom: Math.floor(length / 2), reference: undefined };
  const trial = flags.text === '' ? { ...plain, reference: await logitsOf(plain, exactly) } : plain;
  const exact = await lossOf(trial, exactly);
  const rows = [row(trial, 'exact', exact, exact)];
  for (const groups of flags.groups.split(',').map(Number))
    for (const setting of settingsOf(checkpoint, groups, flags.corrections)) {
      rows.push(row(trial, setting.name, await lossOf(trial, setting), exact));
      console.error(rows.at(-1)?.join('  '));
    }
  const heading = flags.text === '' ? ['KL', ''] : ['perplexity', 'ratio'];
  console.log(formatTable(['setting', ...heading, 'four quarters of the decoded part', '', '', ''], rows));
}

function settingsOf({ path, config }: Checkpoint, groups: number, folder: string): Setting[] {
  const hasNorm = config.attention.kind === 'mla' && config.attention.latentNormEps !== null;
  const none = { window: 0, sinks: 0 };
  const cuts: Record<string, Omit<Setting, 'name'>> = {
    ...(hasNorm ? { norm: { scheme: 'tpla-exact', norm: 'sliced' } } : {}),
    softmax: { scheme: 'tpla', ...none },
    ...(hasNorm ? { both: { scheme: 'tpla', norm: 'sliced' } } : {}),
  };
  const rotations = (['none', 'hadamard', 'pca'] as const).filter(
    (reparam) => reparam !== 'pca' || existsSync(join(path, rotationFileName)),
  );
  return rotations.flatMap((reparam) => {
    const base = { ranks: groups, reparam };
    const name = `${groups} groups, ${reparam}`;
    const ablation = Object.entries(cuts).flatMap(([cut, flags]): Setting[] => [
      { ...base, ...flags, name: `${name}, ${cut} cut` },
      { ...base, ...flags, name: `${name}, ${cut} cut, prompt too`, prefill: 'sliced' },
    ]);
    // A model with near tokens has a window of its own, and takes no other.
    const near = nearTokens(config);
    const kept = { window: 64, sinks: 4 };
    const windowed = { ...base, scheme: 'tpla', ...kept, name: `${name}, softmax cut, window 64 + 4` } as const;
    const corrections = join(folder, reparam);
    const corrected = (near === undefined ? [none, kept] : [near])
      .filter((tokens) => folder !== '' && existsSync(join(corrections, fitFileName(groups, tokens, 0))))
      .map((tokens): Setting => {
        const at = `window ${tokens.window} + ${tokens.sinks}, corrected`;
        const asked = near === undefined ? tokens : none;
        return { ...base, scheme: 'tpla', ...asked, corrections, name: `${name}, softmax cut, ${at}` };
      });
    return [...ablation, ...(near === undefined ? [windowed] : []), ...corrected];
  });
}

/** Mean loss along the decoded tokens, in quarters. */
async function lossOf(trial: Trial, setting: Setting): Promise<number[]> {
  const { windows, decodeFrom, reference, checkpoint } = trial;
  const { vocabSize } = checkpoint.config;
  const losses: (readonly number[])[] = [];
  if (reference === undefined) {
    await using cluster = await start(trial, setting);
    for (const ids of windows) losses.push([...(await score(cluster, { ids, decodeFrom }))].slice(decodeFrom + 1));
  } else
    (await logitsOf(trial, setting)).forEach((rows, i) =>
      losses.push([...divergenceOf(reference[i] ?? rows, rows, vocabSize).kl]),
    );
  const length = losses[0]?.length ?? 0;
  return Array.from({ length: 4 }, (_, quarter) => {
    const [from, to] = [Math.floor((quarter * length) / 4), Math.floor(((quarter + 1) * length) / 4)];
    return mean(losses.flatMap((loss) => loss.slice(from, to)));
  });
}

/** Behind every decoded token. [decoded tokens, vocabSize] of each window */
async function logitsOf(trial: Trial, setting: Setting): Promise<Float32Array[]> {
  const { windows, decodeFrom } = trial;
  await using cluster = await start(trial, setting);
  const all: Float32Array[] = [];
  for (const ids of windows) {
    const rows = new Float32Array((ids.length - decodeFrom) * cluster.vocabSize);
    for await (const piece of windowLogits(cluster, { ids, decodeFrom }, { from: decodeFrom, rowsAtOnce: 64 }))
      rows.set(piece.rows, (piece.firstRow - decodeFrom) * cluster.vocabSize);
    all.push(rows);
  }
  return all;
}

async function start({ checkpoint, windows }: Trial, { name, ...flags }: Setting): Promise<Cluster> {
  const context = windows[0]?.length ?? 1;
  const all = { ...flags, model: checkpoint.path, weights: 'f32', cacheType: 'f32', context };
  const config = await loadClusterConfig({ flags: all });
  return await Cluster.start({ checkpoint, config, log: () => console.error(name) });
}

function row({ reference }: Trial, name: string, loss: readonly number[], exact: readonly number[]): string[] {
  if (reference !== undefined) return [name, mean(loss).toPrecision(3), '', ...loss.map((kl) => kl.toPrecision(3))];
  const ratios = loss.map((value, i) => Math.exp(value - (exact[i] ?? 0)).toFixed(3));
  return [name, Math.exp(mean(loss)).toFixed(2), Math.exp(mean(loss) - mean(exact)).toFixed(3), ...ratios];
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The same in every run: a multiplicative congruential generator with a fixed seed. */
function randomTokens(count: number, vocabSize: number): number[] {
  let state = 20_251_128;
  return Array.from({ length: count }, () => {
    state = (state * 48_271) % 2_147_483_647;
    return state % vocabSize;
  });
}

await main();
