/**
 * A model known by its config.json alone: the sizes that planning needs, with the weights' shapes computed from the
 * configuration. Reading a weight is refused. For `tpla plan` and `tpla inspect` before anything is downloaded.
 */
import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { ConfigError } from '../config/errors.ts';
import type { ModelConfig } from '../config/model-config.ts';
import type { Checkpoint, LayerRole, ModelRole, Weight, WeightShape, WeightType } from './checkpoint.ts';
import type { ModelDescription, Role } from './families/description.ts';
import { layerHas } from './locate-weights.ts';
import { describeConfig, openCheckpoint } from './open.ts';
import { expectedShapes } from './shapes.ts';

/** A checkpoint, or its configuration only: a .json file, or a folder that holds config.json and no weights. */
export async function openSizes(path: string): Promise<Checkpoint> {
  if (path.endsWith('.json')) return new ConfigOnly(path, await describeConfig(path));
  const config = join(path, 'config.json');
  const isBare =
    (await exists(config)) &&
    !(await exists(join(path, 'model.safetensors'))) &&
    !(await exists(join(path, 'model.safetensors.index.json')));
  return isBare ? new ConfigOnly(path, await describeConfig(config)) : openCheckpoint(path);
}

interface Described {
  readonly description: ModelDescription;
  /** torch_dtype of the file; matrices are counted in it. */
  readonly storedType: WeightType;
}

class ConfigOnly implements Checkpoint {
  readonly path: string;
  readonly format = 'safetensors';
  readonly config: ModelConfig;
  readonly weightFileBytes = 0;
  readonly identity: string;
  readonly #described: Described;

  constructor(path: string, described: Described) {
    this.path = path;
    this.config = described.description.config;
    this.identity = createHash('sha256').update(JSON.stringify(this.config)).digest('hex');
    this.#described = described;
  }

  shapeOf(role: ModelRole | LayerRole, layer?: number): WeightShape | undefined {
    const { description, storedType } = this.#described;
    // Biases that a family calls optional are counted: what is planned may need them.
    if (description.names[role] === undefined) return undefined;
    if (layer !== undefined && !layerHas(this.config, role, layer)) return undefined;
    const shape = expectedShapes(this.config)[role];
    return shape && { rows: shape.rows, cols: shape.cols, ...this.#typeOf(role, storedType) };
  }

  read(role: ModelRole | LayerRole): Promise<Weight> {
    return Promise.reject(
      new ConfigError(`${this.path}: only ${basename(this.path)} is there, no weights to read ${role} from`),
    );
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }

  /** Matrices in 8-bit floats are widened when read, as StoredCheckpoint announces them. */
  #typeOf(role: Role, storedType: WeightType): Pick<WeightShape, 'type' | 'fp8'> {
    const isWidened = this.#described.description.scaleBlock !== undefined && !keptRoles.has(role);
    return isWidened ? { type: 'f32', fp8: true } : { type: storedType };
  }
}

/** What DeepSeek's fp8 checkpoints do not quantise. */
const keptRoles: ReadonlySet<Role> = new Set<Role>(['embedding', 'head', 'router']);

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
