/** A checkpoint of test/golden/tiny/ converted without a cluster: at full size the moments decide nothing. */
import { mkdir } from 'node:fs/promises';
import { openCheckpoint } from '../../model/open.ts';
import { identity } from '../../model/transmla/dense.ts';
import { convertPublished } from '../../model/transmla/published.ts';
import { headLayout, readGqaMaps } from '../../model/transmla/read-layer.ts';
import { encodeLayer, type EncodedLayer, writeConverted } from '../../model/transmla/write-converted.ts';
import { tinyModel } from './golden.ts';

/** @param folder to be made */
export async function convertTinyExactly(name: string, folder: string): Promise<void> {
  await using source = await openCheckpoint(tinyModel(name));
  const { config } = source;
  const layout = headLayout(config);
  const merged = layout.numKvHeads * layout.headDim;
  const settings = { ropeDim: merged, latentDim: merged, freqfold: 1, balance: 1 };
  const moment = identity(config.hiddenDim + 1);
  const layers: EncodedLayer[] = [];
  for (let layer = 0; layer < config.numLayers; layer++) {
    const maps = convertPublished(await readGqaMaps(source, layer), moment, layout, config.rope, settings);
    layers.push(encodeLayer(layer, maps, undefined, 'f32'));
  }
  await mkdir(folder, { recursive: true });
  await writeConverted(source, layers, folder, { converted: 'f32', untouched: 'keep' }, {});
}
