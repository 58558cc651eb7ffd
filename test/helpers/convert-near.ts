/** Tiny checkpoints converted by the recipe with near tokens, on statistics that are made up: fast, and nothing is random. */
import { mkdir } from 'node:fs/promises';
import type { ExactTokens } from '../../config/shard-plan.ts';
import { openCheckpoint } from '../../model/open.ts';
import { congruence, identity, multiplyTransposed, rowsOf, stackRows, zeros } from '../../model/transmla/dense.ts';
import { type HeadStatistics, keyValueMoments, phasesOf } from '../../model/transmla/layer-statistics.ts';
import { headLayout, nearValueBias, readGqaMaps, readOutputMap } from '../../model/transmla/read-layer.ts';
import { applyRecipe, planRecipe } from '../../model/transmla/recipe.ts';
import { encodeLayer, type EncodedLayer, writeConverted } from '../../model/transmla/write-converted.ts';

/** Mean of exp(-i theta d) that the pairs of frequency l are said to have. */
export type Phases = (l: number) => readonly [real: number, imaginary: number];

/**
 * @param folder to be made  @param ropeDim, latentDim what a token that is not near leaves in the cache
 * @param phases pairs of the largest loss keep RoPE
 */
export async function convertTinyNear(
  path: string,
  folder: string,
  near: ExactTokens,
  ropeDim: number,
  latentDim: number,
  phases: Phases = () => [0.7, -0.4],
): Promise<void> {
  await using source = await openCheckpoint(path);
  const { config } = source;
  const layout = headLayout(config);
  const { headDim } = layout;
  const half = headDim / 2;
  // Layer inputs of variance 1 about a mean.
  const mean = Float64Array.from({ length: config.hiddenDim + 1 }, (_, i) =>
    i === config.hiddenDim ? 1 : 0.5 * Math.sin(i),
  );
  const inputs = identity(mean.length);
  inputs.data.forEach((value, i) => {
    const [row, column] = [Math.floor(i / mean.length), i % mean.length];
    const isConstant = row === config.hiddenDim && column === config.hiddenDim;
    inputs.data[i] = isConstant ? 1 : value + (mean[row] ?? 0) * (mean[column] ?? 0);
  });
  const layers: EncodedLayer[] = [];
  for (let layer = 0; layer < config.numLayers; layer++) {
    const maps = await readGqaMaps(source, layer);
    const sourceOutput = await readOutputMap(source, layer);
    const one = zeros(1, config.hiddenDim + 1);
    one.data[config.hiddenDim] = 1;
    const moment = congruence(stackRows([maps.key, maps.value, one]), inputs);
    const heads = Array.from({ length: layout.numHeads }, (_, h): HeadStatistics => {
      const query = rowsOf(maps.query, h * headDim, (h + 1) * headDim);
      return {
        scoreWeight: 1,
        probabilityWeight: 1,
        queryMoment: multiplyTransposed(query, query),
        ...phasesOf(
          Float64Array.from({ length: half }, (_, l) => phases(l)[0]),
          Float64Array.from({ length: half }, (_, l) => phases(l)[1]),
        ),
      };
    });
    const statistics = { ...keyValueMoments(moment, moment, moment, true, config.attention.scoreSoftcap > 0), heads };
    const plan = planRecipe(sourceOutput, statistics, layout, ropeDim);
    const made = applyRecipe(maps, sourceOutput, statistics, layout, config.rope, plan, latentDim);
    layers.push(
      encodeLayer(layer, made.maps, {
        dtype: 'f32',
        output: made.output,
        nearValueBias: await nearValueBias(source, layer, made.meanValue),
        farSlope: made.farSlope.data,
      }),
    );
  }
  await mkdir(folder, { recursive: true });
  await writeConverted(source, layers, folder, { converted: 'f32', untouched: 'keep', portable: false, near }, {});
}
