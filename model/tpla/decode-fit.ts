/**
 * Corrections of cut attention (scheme tpla), fitted once per model, latent groups and exact tokens: what they are, how a
 * layer's numbers lie in one payload, and the file that holds them. Applied while loading, in decode only; without the
 * file attention is the paper's. Read next: worker/schemes/fit-session.ts (how they are computed).
 *
 * rotation [r, r]: of the latent, before all else; the identity where another --reparam than `weighted` rotates it.
 *
 * Columns r of the others are those of group 0, then of group 1 ..: with an overlap some stand in every group and the last
 * nowhere.
 *
 * keys [H, r, n]: W_UK for scores of old tokens; row i of a group's columns also carries what the columns of the other
 *   groups add on average, given this one: (I + M^T) W_UK.
 * offsets [g, H, n + 1]: added to the scores of all old tokens of a query, by group: its nope part times the first n
 *   numbers, plus the last. Matters only beside tokens that are scored exactly.
 * values [H, v, r]: W_UV, refitted to the mixtures that cut attention gives.
 * bias [hidden]: added to the output of attention.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { ConfigError, invariant } from '../../config/errors.ts';
import type { ExactTokens } from '../../config/shard-plan.ts';
import { openSafetensors, writeSafetensors } from '../safetensors.ts';

export interface FitShape {
  readonly numHeads: number;
  readonly nopeDim: number;
  readonly valueDim: number;
  readonly latentDim: number;
  readonly latentGroups: number;
  readonly hiddenDim: number;
}

export const fitFields = ['rotation', 'keys', 'offsets', 'values', 'bias'] as const;
export type FitField = (typeof fitFields)[number];
export type LayerFit = Readonly<Record<FitField, Float32Array>>;

export function fitShapes(shape: FitShape): Record<FitField, number[]> {
  const { numHeads, nopeDim, valueDim, latentDim, latentGroups, hiddenDim } = shape;
  return {
    rotation: [latentDim, latentDim],
    keys: [numHeads, latentDim, nopeDim],
    offsets: [latentGroups, numHeads, nopeDim + 1],
    values: [numHeads, valueDim, latentDim],
    bias: [hiddenDim],
  };
}

export function fitLength(shape: FitShape): number {
  return Object.values(fitShapes(shape)).reduce((sum, dims) => sum + count(dims), 0);
}

/** Views into a payload. */
export function splitFit(payload: Float32Array, shape: FitShape): Record<FitField, Float32Array> {
  const shapes = fitShapes(shape);
  let end = 0;
  const view = (field: FitField): Float32Array => {
    const start = end;
    end += count(shapes[field]);
    return payload.subarray(start, end);
  };
  const views = {
    rotation: view('rotation'),
    keys: view('keys'),
    offsets: view('offsets'),
    values: view('values'),
    bias: view('bias'),
  };
  invariant(end === payload.length, `decode fit: ${payload.length} numbers, expected ${end}`);
  return views;
}

/** What a fit is good for, and where it came from; metadata of the file. */
const originSchema = z.object({
  modelIdentity: z.string(),
  latentGroups: z.coerce.number(),
  window: z.coerce.number(),
  sinks: z.coerce.number(),
  /** Columns that every group keeps. */
  overlap: z.coerce.number(),
  reparameterization: z.string(),
  calibrationHash: z.string(),
  /** Corrections that were left out. */
  without: z.string(),
});
export type FitOrigin = z.infer<typeof originSchema>;

/** `tpla_fit_g2_w64_s4.safetensors`, with an overlap `.._o32..`: one for each setting, beside each other. */
export function fitFileName(latentGroups: number, { window, sinks }: ExactTokens, overlap: number): string {
  return `tpla_fit_g${latentGroups}_w${window}_s${sinks}${overlap > 0 ? `_o${overlap}` : ''}.safetensors`;
}

export async function writeFit(
  path: string,
  origin: FitOrigin,
  shape: FitShape,
  layers: readonly LayerFit[],
): Promise<void> {
  const shapes = fitShapes(shape);
  const tensors = layers.flatMap((layer, i) =>
    fitFields.map((field) => ({
      name: `layers.${i}.${field}`,
      type: 'f32' as const,
      shape: shapes[field],
      read: () => new Uint8Array(layer[field].buffer, layer[field].byteOffset, layer[field].byteLength),
    })),
  );
  const metadata = Object.fromEntries(Object.entries(origin).map(([key, value]) => [key, String(value)]));
  await writeSafetensors(path, tensors, metadata);
}

export interface FitRequest {
  readonly folder: string;
  readonly modelIdentity: string;
  readonly reparameterization: string;
  readonly exactTokens: ExactTokens;
  readonly overlap: number;
  readonly shape: FitShape;
  readonly numLayers: number;
}

/** @throws ConfigError when the folder has no fit for this setting, or one of another model */
export async function readFit(request: FitRequest): Promise<LayerFit[]> {
  const { folder, shape, exactTokens, overlap } = request;
  const path = join(folder, fitFileName(shape.latentGroups, exactTokens, overlap));
  if (!existsSync(path))
    throw new ConfigError(
      `corrections: ${path} is not there; run tpla rotate MODEL --out ${folder} with --latent-groups ${shape.latentGroups} ` +
        `--window ${exactTokens.window} --sinks ${exactTokens.sinks}${overlap > 0 ? ` --overlap ${overlap}` : ''}, or leave --corrections out`,
    );
  await using file = await openSafetensors(path);
  const origin = originSchema.safeParse(Object.fromEntries(file.metadata));
  if (!origin.success) throw new ConfigError(`${path}: does not say what it was fitted for; run tpla rotate again`);
  for (const key of ['modelIdentity', 'reparameterization'] as const)
    if (origin.data[key] !== request[key])
      throw new ConfigError(
        `${path}: ${key} is ${origin.data[key]}, here it is ${request[key]}; run tpla rotate again`,
      );
  const shapes = fitShapes(shape);
  const layers: LayerFit[] = [];
  for (let layer = 0; layer < request.numLayers; layer++) {
    const read = async (field: FitField): Promise<Float32Array> => {
      const name = `layers.${layer}.${field}`;
      const tensor = file.tensors.get(name);
      if (tensor === undefined || tensor.type !== 'f32' || tensor.shape.join() !== shapes[field].join())
        throw new ConfigError(`${path}: ${name} is not f32 [${shapes[field].join(', ')}]; run tpla rotate again`);
      const bytes = await tensor.file.read(tensor.offset, 4 * count(shapes[field]), name);
      return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    };
    layers.push({
      rotation: await read('rotation'),
      keys: await read('keys'),
      offsets: await read('offsets'),
      values: await read('values'),
      bias: await read('bias'),
    });
  }
  return layers;
}

function count(dims: readonly number[]): number {
  return dims.reduce((product, size) => product * size, 1);
}
