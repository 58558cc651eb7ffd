/**
 * The two streams of a refit on real kernels: a layer converted exactly misses nothing, and the converted stream behind
 * it is the original one, so that the next layer's statistics are those of an ordinary calibration.
 */
import { join } from 'node:path';
import { expect, it } from 'vitest';
import {
  fieldsLength,
  layerMapFields,
  outputEquationFields,
  outputMapFields,
  splitFields,
  valueEquationFields,
  valueMapFields,
} from '../../../../collective/refit-maps.ts';
import { splitStatistics } from '../../../../collective/statistics.ts';
import { joinSegments } from '../../../../collective/window-sums.ts';
import { splitBias } from '../../../../model/transmla/attention-maps.ts';
import { rowsOf } from '../../../../model/transmla/dense.ts';
import { averageStatistics } from '../../../../model/transmla/layer-statistics.ts';
import { headLayout, readGqaMaps, readOutputMap } from '../../../../model/transmla/read-layer.ts';
import { applyRecipe, planRecipe } from '../../../../model/transmla/recipe.ts';
import { refitOutput, refitValues } from '../../../../model/transmla/refit.ts';
import { openCheckpoint } from '../../../../model/open.ts';
import { openBackend } from '../../../../worker/backend.ts';
import { CalibrationSession } from '../../../../worker/calibration/calibration-session.ts';
import { goldenFolder } from '../../../helpers/golden.ts';
import { random } from '../../model/transmla/random-layer.ts';

it.each([
  ['llama-odd-heads', 'ggml'],
  ['llama-attention-bias', 'ggml'],
  ['llama-yarn', 'reference'],
  ['gemma2', 'ggml'],
  ['mixtral', 'ggml'],
  ['llama-odd-heads', 'ggml', { sinks: 2, window: 4 }],
  ['llama-attention-bias', 'reference', { sinks: 0, window: 3 }],
  ['llama-yarn', 'ggml', { sinks: 1, window: 6 }],
  ['gemma2', 'ggml', { sinks: 3, window: 2 }],
] as const)('%s on %s, near tokens %o: an exact conversion misses nothing', async (name, backendName, near?) => {
  await using checkpoint = await openCheckpoint(join(goldenFolder, 'tiny', name));
  const { config } = checkpoint;
  const backend = await openBackend({ backend: backendName, device: '', threads: 1 });
  const next = random(6);
  const windows = Array.from({ length: 3 }, () =>
    Array.from({ length: 17 }, () => Math.floor((next() + 0.5) * config.vocabSize)),
  );
  const part = { windows, worldSize: 1, rank: 0, near };
  using plain = await CalibrationSession.begin(checkpoint, backend, { ...part, refits: false });
  using session = await CalibrationSession.begin(checkpoint, backend, { ...part, refits: true });
  const { refit } = session;
  if (refit === undefined) throw new Error('expected a refit');
  const layout = headLayout(config);
  const merged = layout.numKvHeads * layout.headDim;
  const sizes = { ropeDim: merged, latentDim: merged };
  const shape = { ...layout, hiddenDim: config.hiddenDim, ...sizes };
  refit.begin(merged, merged);
  for (let layer = 0; layer < 2; layer++) {
    const expected = splitStatistics(joinSegments([await plain.statistics(layer)], 3), layout);
    const sums = splitStatistics(joinSegments([await session.statistics(layer)], 3), layout);
    const size = Math.max(...expected.plainMoment);
    expected.plainMoment.forEach((value, i) =>
      expect(Math.abs(sums.plainMoment[i]! - value) / size).toBeLessThan(1e-3),
    );
    refit.original();
    const statistics = averageStatistics(expected, layout, undefined, near && config.attention.scoreSoftcap > 0);
    const output = await readOutputMap(checkpoint, layer);
    const plan = planRecipe(output, statistics, layout, merged);
    const maps = await readGqaMaps(checkpoint, layer);
    const converted = applyRecipe(maps, output, statistics, layout, config.rope, plan, merged);
    const payload = new Float32Array(fieldsLength(layerMapFields(shape)));
    const places = splitFields(payload, layerMapFields(shape));
    const [query, down] = [splitBias(converted.maps.query), splitBias(converted.maps.latentDown)];
    places.query.set(query.weight.data);
    places.queryBias.set(query.bias ?? []);
    places.latentDown.set(down.weight.data);
    places.latentDownBias.set(down.bias ?? []);
    places.frequencies.set(converted.maps.frequencies);
    places.meanValue.set(converted.meanValue.data);
    places.farSlope.set(converted.farSlope.data);
    const { numHeads, headDim } = layout;
    const valueUp = { rows: numHeads * headDim, cols: merged, data: new Float64Array(numHeads * headDim * merged) };
    for (let head = 0; head < numHeads; head++) {
      const [nope, values] = [0, 1].map((half) =>
        rowsOf(converted.maps.latentUp, (2 * head + half) * headDim, (2 * head + half + 1) * headDim),
      );
      places.keyUp.set(nope!.data, head * headDim * merged);
      valueUp.data.set(values!.data, head * headDim * merged);
    }
    const mean = rowsOf(statistics.mean, merged, 2 * merged);
    const valueSums = splitFields(joinSegments([refit.attend(payload)], 3), valueEquationFields(shape));
    const fitted = refitValues(valueSums, valueUp, mean, layout);
    expect(fitted.missedBefore).toBeLessThan(1e-4);
    expect(fitted.missedAfter).toBeLessThan(1e-4);
    const valueMaps = Float32Array.from(fitted.valueUp.data);
    expect(valueMaps.length).toBe(fieldsLength(valueMapFields(shape)));
    const outputSums = splitFields(joinSegments([refit.values(valueMaps)], 3), outputEquationFields(shape));
    const refitted = refitOutput(outputSums, output, fitted.bias);
    expect(refitted.missed).toBeLessThan(1e-4);
    const { weight, bias } = splitBias(refitted.output);
    const outputMaps = new Float32Array(fieldsLength(outputMapFields(shape)));
    const outputPlaces = splitFields(outputMaps, outputMapFields(shape));
    outputPlaces.output.set(weight.data);
    outputPlaces.outputBias.set(bias ?? []);
    refit.advance(outputMaps);
  }
});

it('sums have the same bits whether one rank has all windows or three divide them', async () => {
  await using checkpoint = await openCheckpoint(join(goldenFolder, 'tiny', 'llama-odd-heads'));
  const { config } = checkpoint;
  const backend = await openBackend({ backend: 'ggml', device: '', threads: 1 });
  const next = random(7);
  const windows = Array.from({ length: 7 }, () =>
    Array.from({ length: 11 }, () => Math.floor((next() + 0.5) * config.vocabSize)),
  );
  const layout = headLayout(config);
  const shape = { ...layout, hiddenDim: config.hiddenDim, ropeDim: 4, latentDim: 9 };
  const seeded = (length: number, seed: number): Float32Array =>
    Float32Array.from({ length }, (_, i) => 0.1 * Math.sin(seed + i * 1.7));
  const sumsOf = async (worldSize: number): Promise<Float64Array[]> => {
    const found: Float32Array[][] = [];
    for (let rank = 0; rank < worldSize; rank++) {
      const part = { windows, worldSize, rank, refits: true };
      using session = await CalibrationSession.begin(checkpoint, backend, part);
      const payloads: Float32Array[] = [];
      session.refit!.begin(4, 9);
      for (let layer = 0; layer < 2; layer++) {
        payloads.push(await session.statistics(layer));
        session.refit!.original();
        payloads.push(session.refit!.attend(seeded(fieldsLength(layerMapFields(shape)), layer)));
        payloads.push(session.refit!.values(seeded(fieldsLength(valueMapFields(shape)), layer + 5)));
        session.refit!.advance(seeded(fieldsLength(outputMapFields(shape)), layer + 9));
      }
      found.push(payloads);
    }
    return found[0]!.map((_, i) =>
      joinSegments(
        found.map((payloads) => payloads[i]!),
        7,
      ),
    );
  };
  const one = await sumsOf(1);
  for (const worldSize of [2, 3]) expect(await sumsOf(worldSize)).toEqual(one);
});
