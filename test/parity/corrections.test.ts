/** Closed-form corrections of scheme tpla: nothing changes where nothing is cut, and less is lost where something is. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { fitCorrections, lossOfCut, startCut, type CutSetting, type FitCase } from '../helpers/fit-corrections.ts';
import { convertTinyNear } from '../helpers/convert-near.ts';
import { openCheckpoint } from '../../model/open.ts';
import { goldenFolder, tinyModel } from '../helpers/golden.ts';
import { startLocalRanks } from '../helpers/local-ranks.ts';
import { seededRandom } from '../helpers/random.ts';
import { tinyVocab, writeTinyMla } from '../helpers/tiny-mla.ts';

const next = seededRandom(41);
const windows = Array.from({ length: 6 }, () => Array.from({ length: 80 }, () => Math.floor(next() * tinyVocab)));
const prompt = 20;

let model: Awaited<ReturnType<typeof writeTinyMla>>;
let folder: string;
let converted: FitCase;
beforeAll(async () => {
  model = await writeTinyMla();
  folder = await mkdtemp(join(tmpdir(), 'corrections-'));
  converted = { path: model.path, windows, prompt, folder };
});
afterAll(async () => {
  await model[Symbol.asyncDispose]();
  await rm(folder, { recursive: true });
});

test.each<[number, CutSetting['exactTokens'], number]>([
  [2, { sinks: 0, window: 0 }, 0],
  [2, { sinks: 2, window: 8 }, 0],
  [3, { sinks: 2, window: 8 }, 0],
  [2, { sinks: 2, window: 8 }, 5],
  [3, { sinks: 0, window: 0 }, 3],
])('%i groups with %o and an overlap of %i lose less with corrections', async (latentGroups, exactTokens, overlap) => {
  const setting = { latentGroups, exactTokens, overlap };
  await fitCorrections(converted, setting);
  await using plain = await startCut(model.path, setting);
  await using corrected = await startCut(model.path, setting, folder);
  const [before, after] = [await lossOfCut(converted, plain), await lossOfCut(converted, corrected)];
  expect(before).toBeGreaterThan(1e-3);
  expect(after).toBeLessThan(0.7 * before);
});

test('where every token is scored exactly, a fit changes nothing', async () => {
  const setting = { latentGroups: 2, exactTokens: { sinks: 0, window: 80 } };
  await fitCorrections(converted, setting);
  await using corrected = await startCut(model.path, setting, folder);
  expect(await lossOfCut(converted, corrected)).toBeLessThan(1e-6);
});

test.each([2, 3])('beside near tokens %i groups lose less with corrections', async (latentGroups) => {
  const near = join(folder, `near-${latentGroups}`);
  await convertTinyNear(tinyModel('llama-gqa'), near, { sinks: 2, window: 8 }, 4, 12);
  const { vocabSize } = (await openCheckpoint(near)).config;
  const own = windows.map((window) => window.map((token) => token % vocabSize));
  const one = { path: near, windows: own, prompt, folder: near };
  const setting = { latentGroups, exactTokens: { sinks: 0, window: 0 } };
  await using plain = await startCut(near, setting);
  const before = await lossOfCut(one, plain);
  expect(before).toBeGreaterThan(1e-4);
  await fitCorrections(one, setting, ['keys', 'offsets', 'values']);
  await using uncorrected = await startCut(near, setting, near);
  expect(await lossOfCut(one, uncorrected)).toBeCloseTo(before, 6);
  await fitCorrections(one, setting);
  await using corrected = await startCut(near, setting, near);
  expect(await lossOfCut(one, corrected)).toBeLessThan(0.7 * before);
});

test('a native latent, whose columns stand in no order, loses less once they do', async () => {
  const native = { path: join(goldenFolder, 'tiny', 'kimi-k2-like'), windows: windows.slice(0, 3), prompt, folder };
  const setting = { latentGroups: 2, exactTokens: { sinks: 2, window: 8 }, overlap: 5 };
  const loss: number[] = [];
  for (const without of [
    ['order', 'keys', 'offsets', 'values'],
    ['keys', 'offsets', 'values'],
    ['order'],
    [],
  ] as const) {
    await fitCorrections(native, setting, without);
    await using corrected = await startCut(native.path, setting, folder);
    loss.push(await lossOfCut(native, corrected));
  }
  await using plain = await startCut(native.path, setting);
  const [nothing, order, rest, all] = loss;
  expect(nothing).toBeCloseTo(await lossOfCut(native, plain), 3);
  expect(order).toBeLessThan(0.85 * nothing!);
  expect(all).toBeLessThan(0.9 * rest!);
});

test('a fit for other sizes, or of another model, is refused', async () => {
  await fitCorrections(converted, { latentGroups: 2, exactTokens: { sinks: 1, window: 4 } });
  await expect(startCut(model.path, { latentGroups: 2, exactTokens: { sinks: 0, window: 5 } }, folder)).rejects.toThrow(
    'tpla_fit_g2_w5_s0.safetensors is not there',
  );
  await using other = await writeTinyMla({ ropeDim: 6 }, 9);
  const options = { scheme: 'tpla', exactTokens: { sinks: 1, window: 4 }, corrections: folder } as const;
  await expect(startLocalRanks(other.path, 2, options)).rejects.toThrow('modelIdentity is ');
});
