/** A checkpoint of test/golden/tiny/ converted without a cluster: at full size the moments decide nothing. */
import { copyFile, mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { openCheckpoint } from '../../model/open.ts';
import { identity, rowsOf, scaled, stackRows } from '../../model/transmla/dense.ts';
import { portableMaps } from '../../model/transmla/portable.ts';
import { convertPublished } from '../../model/transmla/published.ts';
import { convertibleAttention, headLayout, readGqaMaps, readOutputMap } from '../../model/transmla/read-layer.ts';
import { encodeLayer, type EncodedLayer, writeConverted } from '../../model/transmla/write-converted.ts';
import { tinyModel } from './golden.ts';

/** @param folder to be made */
export function convertTinyExactly(name: string, folder: string): Promise<void> {
  return convertExactly(tinyModel(name), folder);
}

/** The same for any small checkpoint. @param folder to be made */
export async function convertExactly(path: string, folder: string): Promise<void> {
  await using source = await openCheckpoint(path);
  const { config } = source;
  const layout = headLayout(config);
  const merged = layout.numKvHeads * layout.headDim;
  const settings = { ropeDim: merged, latentDim: merged, freqfold: 1, balance: 1 };
  const moment = identity(config.hiddenDim + 1);
  const layers: EncodedLayer[] = [];
  for (let layer = 0; layer < config.numLayers; layer++) {
    const maps = convertPublished(await readGqaMaps(source, layer), moment, layout, config.rope, settings);
    layers.push(encodeLayer(layer, maps, { dtype: 'f32' }));
  }
  await mkdir(folder, { recursive: true });
  await writeConverted(
    source,
    layers,
    folder,
    { converted: 'f32', untouched: 'keep', portable: false, near: null },
    {},
  );
  for (const name of await readdir(path))
    if (name.startsWith('tok')) await copyFile(join(path, name), join(folder, name));
}

/**
 * One slot of each frequency keeps RoPE, the others lose it, nothing else is dropped: in the form of this program and in
 * that of stock DeepSeek-V3 code, which must compute the same.
 * @param spread factor from the latent to what reads it: changes numbers, not results
 * @param folder to be made, with the forms as `own` and `portable`
 */
export async function convertTinyBothWays(name: string, folder: string, spread = 1): Promise<void> {
  await using source = await openCheckpoint(tinyModel(name));
  const { config } = source;
  const layout = headLayout(config);
  const { scoreScale } = convertibleAttention(config);
  const merged = layout.numKvHeads * layout.headDim;
  const settings = { ropeDim: layout.headDim, latentDim: 2 * merged - layout.headDim, freqfold: 1, balance: 1 };
  const moment = identity(config.hiddenDim + 1);
  for (const portable of [false, true]) {
    const layers: EncodedLayer[] = [];
    for (let layer = 0; layer < config.numLayers; layer++) {
      const made = convertPublished(await readGqaMaps(source, layer), moment, layout, config.rope, settings);
      const [latent, rope] = [
        rowsOf(made.latentDown, 0, made.latentDim),
        rowsOf(made.latentDown, made.latentDim, made.latentDown.rows),
      ];
      const latentDown = stackRows([scaled(latent, 1 / spread), rope]);
      const maps = { ...made, latentDown, latentUp: scaled(made.latentUp, spread) };
      const output = await readOutputMap(source, layer);
      const written = portable ? portableMaps(maps, layout, scoreScale) : maps;
      layers.push(encodeLayer(layer, written, { dtype: 'f32', output }));
    }
    const to = join(folder, portable ? 'portable' : 'own');
    await mkdir(to, { recursive: true });
    await writeConverted(source, layers, to, { converted: 'f32', untouched: 'f32', portable, near: null }, {});
  }
}
