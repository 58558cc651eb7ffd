/** Maps of one layer as the ranks take them, and W_UK and W_UV apart. Read next: convert-refitted.ts. */
import {
  fieldsLength,
  layerMapFields,
  outputMapFields,
  type RefitShape,
  splitFields,
} from '../../collective/refit-maps.ts';
import { type MlaMaps, splitBias } from '../../model/transmla/attention-maps.ts';
import { type Dense, rowsOf, stackRows } from '../../model/transmla/dense.ts';
import type { RecipeLayer } from '../../model/transmla/recipe.ts';
import { floatTypeOf, type MatrixType, roundFloats, roundMatrix } from '../../model/transmla/encode-floats.ts';

/** As they will be written, so that the stream is that of the checkpoint. */
export function layerMaps(
  { maps, meanValue, farSlope }: Pick<RecipeLayer, 'maps' | 'meanValue' | 'farSlope'>,
  shape: RefitShape,
  dtype: MatrixType,
): Float32Array {
  const fields = layerMapFields(shape);
  const payload = new Float32Array(fieldsLength(fields));
  const places = splitFields(payload, fields);
  const [query, down] = [splitBias(maps.query), splitBias(maps.latentDown)];
  places.query.set(roundMatrix(query.weight, dtype, 'query'));
  places.queryBias.set(query.bias ?? []);
  places.latentDown.set(roundMatrix(down.weight, dtype, 'latentDown'));
  places.latentDownBias.set(down.bias ?? []);
  places.keyUp.set(roundFloats(splitUp(maps, shape)[0].data, floatTypeOf(dtype), 'latentUp'));
  places.frequencies.set(maps.frequencies);
  places.meanValue.set(meanValue.data);
  places.farSlope.set(farSlope.data);
  return payload;
}

export function outputMaps(output: Dense, shape: RefitShape, dtype: MatrixType): Float32Array {
  const fields = outputMapFields(shape);
  const payload = new Float32Array(fieldsLength(fields));
  const places = splitFields(payload, fields);
  const { weight, bias } = splitBias(output);
  places.output.set(roundMatrix(weight, dtype, 'output'));
  places.outputBias.set(bias ?? []);
  return payload;
}

/** W_UK and W_UV of all heads. [H d, r] each */
export function splitUp({ latentUp }: MlaMaps, { numHeads, headDim }: RefitShape): [Dense, Dense] {
  const half = (head: number, which: number): Dense =>
    rowsOf(latentUp, (2 * head + which) * headDim, (2 * head + which + 1) * headDim);
  const all = (which: number): Dense => stackRows(Array.from({ length: numHeads }, (_, head) => half(head, which)));
  return [all(0), all(1)];
}

/** The inverse of splitUp. [H (d + d), r] */
export function joinUp(keyUp: Dense, valueUp: Dense, { numHeads, headDim }: RefitShape): Dense {
  const heads = Array.from({ length: numHeads }, (_, head) => [
    rowsOf(keyUp, head * headDim, (head + 1) * headDim),
    rowsOf(valueUp, head * headDim, (head + 1) * headDim),
  ]);
  return stackRows(heads.flat());
}
