/**
 * The weights that a conversion leaves as they are, as tensors to be written: bit for bit in the type they are stored
 * in, or in a float type that was asked for. Each is read when it is written, a piece at a time, so that a large
 * vocabulary or many experts cost no memory. Read next: write-converted.ts.
 */
import { invariant } from '../../config/errors.ts';
import { routes } from '../../config/model-config.ts';
import type { Range } from '../../config/shard-plan.ts';
import type { Checkpoint, LayerRole, ModelRole, WeightShape } from '../checkpoint.ts';
import { toFloat32 } from '../dequantize.ts';
import { convertedNames } from '../families/converted.ts';
import type { TensorSource } from '../safetensors.ts';
import { encodeFloats, type FloatType } from './encode-floats.ts';

/** keep: as the source stores them. */
export type UntouchedType = FloatType | 'keep';

const vectors: ReadonlySet<ModelRole | LayerRole> = new Set([
  'finalNorm',
  'attentionNorm',
  'attentionPostNorm',
  'feedForwardNorm',
  'feedForwardPostNorm',
  'outputBias',
  'routerBias',
  'keyBias',
]);

const layerRoles = [
  'attentionNorm',
  'attentionPostNorm',
  'feedForwardNorm',
  'feedForwardPostNorm',
  'gate',
  'up',
  'down',
  'router',
  'routerBias',
  'expertGate',
  'expertUp',
  'expertDown',
  'sharedGate',
  'sharedUp',
  'sharedDown',
  'output',
  'outputBias',
] as const satisfies readonly LayerRole[];

/** About this many values are in memory at a time. */
const valuesAtOnce = 1 << 22;

export function tensorName(role: keyof typeof convertedNames, layer?: number, expert?: number): string {
  return convertedNames[role].replace('{layer}', `${layer}`).replace('{expert}', `${expert}`);
}

/** What near tokens take from the source; the bias of their values is the conversion's. */
const nearRoles = ['key', 'keyBias', 'value'] as const satisfies readonly LayerRole[];

/**
 * @param replacesOutput by layer: the conversion has an o_proj of its own
 * @param hasNearTokens which keep the source's keys and values
 */
export function untouchedTensors(
  source: Checkpoint,
  replacesOutput: readonly boolean[],
  type: UntouchedType,
  hasNearTokens: boolean,
): TensorSource[] {
  const { config } = source;
  const tensors: TensorSource[] = [];
  const copy = (role: keyof typeof convertedNames & (ModelRole | LayerRole), layer?: number): void => {
    const shape = source.shapeOf(role, layer);
    if (shape === undefined) return;
    const count = convertedNames[role].includes('{expert}') ? (config.experts?.count ?? 0) : 1;
    const rowsEach = shape.rows / count;
    for (let expert = 0; expert < count; expert++) {
      const rows = { start: expert * rowsEach, end: (expert + 1) * rowsEach };
      tensors.push(copied(source, role, layer, shape, rows, vectors.has(role) ? 'f32' : type, expert));
    }
  };
  copy('embedding');
  copy('finalNorm');
  if (!config.tiedEmbeddings) copy('head');
  replacesOutput.forEach((replaced, layer) => {
    if (hasNearTokens) for (const role of nearRoles) copy(role, layer);
    for (const role of layerRoles) if (!(replaced && (role === 'output' || role === 'outputBias'))) copy(role, layer);
    invariant(
      source.shapeOf(routes(config, layer) ? 'expertGate' : 'gate', layer) !== undefined,
      `layer ${layer} has no feed-forward part`,
    );
  });
  return tensors;
}

function copied(
  source: Checkpoint,
  role: keyof typeof convertedNames & (ModelRole | LayerRole),
  layer: number | undefined,
  { type: stored, cols }: WeightShape,
  rows: Range,
  wanted: UntouchedType,
  expert: number,
): TensorSource {
  const name = tensorName(role, layer, expert);
  const type = wanted === 'keep' ? stored : wanted;
  return {
    name,
    type,
    shape: vectors.has(role) ? [cols] : [rows.end - rows.start, cols],
    async *read() {
      const step = Math.max(1, Math.floor(valuesAtOnce / cols));
      for (let start = rows.start; start < rows.end; start += step) {
        const part = await source.read(role, layer, { start, end: Math.min(rows.end, start + step) });
        if (type === part.type) yield part.bytes;
        else {
          invariant(type === 'f32' || type === 'f16' || type === 'bf16', `${name}: ${part.type} cannot become ${type}`);
          yield encodeFloats(toFloat32(part), type, name);
        }
      }
    },
  };
}
