/**
 * The Checkpoint made of a TensorStore and a family's description: checks every weight's presence, type and shape when
 * opened, then reads ranges of rows and columns. Rows that GGUF stores in neighbour-pair order come out in the halves
 * order of Hugging Face. Nothing is cached.
 */
import { createHash } from 'node:crypto';
import { ConfigError, InvariantError, invariant } from '../config/errors.ts';
import type { ModelConfig } from '../config/model-config.ts';
import { size, type Range } from '../config/shard-plan.ts';
import type { Checkpoint, LayerRole, ModelRole, Weight, WeightShape } from './checkpoint.ts';
import type { ModelDescription, Role } from './families/description.ts';
import { expectedShapes, type ExpectedShape } from './shapes.ts';
import type { StoredTensor, TensorStore } from './tensor-store.ts';
import { isWeightType, rowBytes, weightLayout } from './tensor-types.ts';

/** A column slice is cut out of whole rows, read in pieces of about this size. */
const pieceBytes = 1 << 22;

const modelRoles: ReadonlySet<string> = new Set<ModelRole>(['embedding', 'head', 'finalNorm']);

interface LocatedWeight extends WeightShape {
  readonly tensor: StoredTensor;
}

export class StoredCheckpoint implements Checkpoint {
  readonly path: string;
  readonly config: ModelConfig;
  readonly identity: string;
  readonly #store: TensorStore;
  readonly #description: ModelDescription;
  readonly #weights: ReadonlyMap<string, LocatedWeight>;

  /** @throws ConfigError when a weight is missing, has another shape than the configuration says, or an unknown type */
  constructor(path: string, store: TensorStore, description: ModelDescription) {
    this.path = path;
    this.config = description.config;
    this.#store = store;
    this.#description = description;
    this.#weights = locateWeights(store, description);
    this.identity = identityOf(store, description.config);
  }

  get format(): 'gguf' | 'safetensors' {
    return this.#store.format;
  }

  get weightFileBytes(): number {
    return this.#store.fileBytes;
  }

  shapeOf(role: ModelRole | LayerRole, layer?: number): WeightShape | undefined {
    const weight = this.#weights.get(keyOf(role, layer));
    return weight && { rows: weight.rows, cols: weight.cols, type: weight.type };
  }

  async read(role: ModelRole | LayerRole, layer?: number, rows?: Range, cols?: Range): Promise<Weight> {
    const weight = this.#weights.get(keyOf(role, layer));
    if (weight === undefined)
      throw new ConfigError(`weights: this ${this.config.architecture} model has no ${label(role, layer)}`);
    const rowRange = rows ?? { start: 0, end: weight.rows };
    const colRange = cols ?? { start: 0, end: weight.cols };
    checkRange(rowRange, weight.rows, 1, `rows of ${label(role, layer)}`);
    checkRange(colRange, weight.cols, weightLayout(weight.type).blockSize, `columns of ${label(role, layer)}`);
    const bytes = this.#description.neighbourPairs.includes(role)
      ? await readNeighbourPairs(weight, this.#headDim(), rowRange, colRange)
      : await readRange(weight, rowRange, colRange);
    return { rows: size(rowRange), cols: size(colRange), type: weight.type, bytes };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store[Symbol.asyncDispose]();
  }

  #headDim(): number {
    invariant(this.config.attention.kind === 'gqa', 'neighbour pairs are undone per head of grouped-query attention');
    return this.config.attention.headDim;
  }
}

function locateWeights(store: TensorStore, { config, names, optional }: ModelDescription): Map<string, LocatedWeight> {
  const weights = new Map<string, LocatedWeight>();
  const shapes = expectedShapes(config);
  const locate = (role: Role, pattern: string, layer?: number): void => {
    const name = pattern.replace('{layer}', String(layer));
    const tensor = store.tensors.get(name);
    const expected = shapes[role];
    invariant(expected, `families: ${config.architecture} names ${role}, which its kind of attention does not have`);
    if (tensor !== undefined) weights.set(keyOf(role, layer), checkWeight(tensor, expected, label(role, layer)));
    else if (!optional.includes(role))
      throw new ConfigError(
        `weights: ${label(role, layer)} is missing: no tensor ${name} in ${store.tensors.size}; do configuration and weights belong together?`,
      );
  };
  // Object.entries forgets the key type; names has roles as keys by its own type.
  const roles = Object.entries(names) as [Role, string][];
  for (const [role, pattern] of roles.filter(([role]) => modelRoles.has(role))) locate(role, pattern);
  const layerRoles = roles.filter(([role]) => !modelRoles.has(role));
  for (let layer = 0; layer < config.numLayers; layer++)
    for (const [role, pattern] of layerRoles) locate(role, pattern, layer);
  return weights;
}

function checkWeight(tensor: StoredTensor, expected: ExpectedShape, what: string): LocatedWeight {
  const isVector = expected.rows === 1;
  const wanted = isVector ? [expected.cols] : [expected.rows, expected.cols];
  if (tensor.shape.join() !== wanted.join())
    throw new ConfigError(
      `weights: ${what} is [${tensor.shape.join(', ')}], expected [${wanted.join(', ')}] = ${expected.because} (tensor ${tensor.name}); do configuration and weights belong together?`,
    );
  if (!isWeightType(tensor.type))
    throw new ConfigError(
      `weights: ${what} is stored as ${tensor.type}, which cannot be computed with (tensor ${tensor.name}); use a file in f32, f16, bf16, q8_0, q4_K or another common type`,
    );
  return { tensor, rows: expected.rows, cols: expected.cols, type: tensor.type };
}

/** @returns rows * cols values, row-major, in the stored type */
async function readRange(weight: LocatedWeight, rows: Range, cols: Range): Promise<Uint8Array> {
  const { tensor, type } = weight;
  const strideBytes = rowBytes(type, weight.cols);
  const read = (from: number, count: number): Promise<Uint8Array> =>
    tensor.file.read(tensor.offset + from * strideBytes, count * strideBytes, `tensor ${tensor.name}`);
  if (size(cols) === weight.cols) return read(rows.start, size(rows));
  const cutBytes = rowBytes(type, size(cols));
  const cutStart = rowBytes(type, cols.start);
  const out = new Uint8Array(size(rows) * cutBytes);
  if (out.byteLength === 0) return out;
  const rowsPerPiece = Math.max(1, Math.floor(pieceBytes / strideBytes));
  for (let start = rows.start; start < rows.end; start += rowsPerPiece) {
    const count = Math.min(rowsPerPiece, rows.end - start);
    const piece = await read(start, count);
    for (let i = 0; i < count; i++) {
      const from = i * strideBytes + cutStart;
      out.set(piece.subarray(from, from + cutBytes), (start - rows.start + i) * cutBytes);
    }
  }
  return out;
}

/**
 * Row h * headDim + half * headDim/2 + i of Hugging Face is row h * headDim + 2 i + half of the file. Whole heads are
 * read, then their rows (for a bias: its elements) are put in order.
 */
async function readNeighbourPairs(
  weight: LocatedWeight,
  headDim: number,
  rows: Range,
  cols: Range,
): Promise<Uint8Array> {
  const isVector = weight.rows === 1;
  const wanted = isVector ? cols : rows;
  const heads = {
    start: Math.floor(wanted.start / headDim) * headDim,
    end: Math.ceil(wanted.end / headDim) * headDim,
  };
  const stored = isVector ? await readRange(weight, rows, heads) : await readRange(weight, heads, cols);
  const unitBytes = rowBytes(weight.type, isVector ? 1 : size(cols));
  const out = new Uint8Array(size(wanted) * unitBytes);
  for (let row = wanted.start; row < wanted.end; row++) {
    const within = row % headDim;
    const half = within < headDim / 2 ? 0 : 1;
    const storedRow = row - within + 2 * (within - (half * headDim) / 2) + half;
    const from = (storedRow - heads.start) * unitBytes;
    out.set(stored.subarray(from, from + unitBytes), (row - wanted.start) * unitBytes);
  }
  return out;
}

function checkRange(range: Range, length: number, block: number, what: string): void {
  const { start, end } = range;
  if (start < 0 || end > length || start > end || start % block !== 0 || end % block !== 0)
    throw new InvariantError(`weights: ${what}: ${start}..${end} is not a range of ${length} in blocks of ${block}`);
}

function identityOf(store: TensorStore, config: ModelConfig): string {
  const table = [...store.tensors.values()]
    .map(({ name, type, shape, bytes }) => [name, type, shape, bytes])
    .sort(([a], [b]) => (String(a) < String(b) ? -1 : 1));
  return createHash('sha256')
    .update(JSON.stringify([config, table, store.fileBytes]))
    .digest('hex');
}

function keyOf(role: Role, layer: number | undefined): string {
  return layer === undefined ? role : `${layer} ${role}`;
}

function label(role: Role, layer: number | undefined): string {
  return layer === undefined ? role : `layers.${layer} ${role}`;
}
