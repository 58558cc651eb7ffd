/**
 * The Checkpoint made of a TensorStore and a family's description. Read next: locate-weights.ts, which finds and checks
 * every weight when the checkpoint is opened, and read-weight.ts, which reads ranges of it.
 */
import { createHash } from 'node:crypto';
import { ConfigError, InvariantError } from '../config/errors.ts';
import type { ModelConfig } from '../config/model-config.ts';
import { size, type Range } from '../config/shard-plan.ts';
import type { Checkpoint, LayerRole, ModelRole, Weight, WeightShape } from './checkpoint.ts';
import type { ModelDescription } from './families/description.ts';
import { keyOf, label, locateWeights, type LocatedWeight } from './locate-weights.ts';
import { readWeight } from './read-weight.ts';
import type { TensorStore } from './tensor-store.ts';
import { weightLayout } from './tensor-types.ts';

export class StoredCheckpoint implements Checkpoint {
  readonly path: string;
  readonly config: ModelConfig;
  readonly identity: string;
  readonly #store: TensorStore;
  readonly #weights: ReadonlyMap<string, LocatedWeight>;

  /** @throws ConfigError when a weight is missing, has another shape than the configuration says, or an unknown type */
  constructor(path: string, store: TensorStore, description: ModelDescription) {
    this.path = path;
    this.config = description.config;
    this.#store = store;
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
    return weight && shapeOf(weight);
  }

  async read(role: ModelRole | LayerRole, layer?: number, rows?: Range, cols?: Range): Promise<Weight> {
    const weight = this.#weights.get(keyOf(role, layer));
    if (weight === undefined)
      throw new ConfigError(`weights: this ${this.config.architecture} model has no ${label(role, layer)}`);
    const rowRange = rows ?? { start: 0, end: weight.rows };
    const colRange = cols ?? { start: 0, end: weight.cols };
    checkRange(rowRange, weight.rows, 1, `rows of ${label(role, layer)}`);
    checkRange(colRange, weight.cols, weightLayout(weight.type).blockSize, `columns of ${label(role, layer)}`);
    const bytes = await readWeight(weight, rowRange, colRange);
    return { ...shapeOf(weight), rows: size(rowRange), cols: size(colRange), bytes };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store[Symbol.asyncDispose]();
  }
}

function shapeOf({ rows, cols, type, fp8 }: LocatedWeight): WeightShape {
  return { rows, cols, type, ...(fp8 && { fp8 }) };
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
