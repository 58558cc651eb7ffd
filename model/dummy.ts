/**
 * A model of random weights made from a config.json alone, to measure speed at sizes for which nobody needs a file. A
 * number depends on its role, layer, row and column only, so that every split of the ranks sees the same model. Its
 * path names it: `dummy:LAYERS:CONFIG`. Text that it generates means nothing.
 */
import { resolve } from 'node:path';
import { ConfigError } from '../config/errors.ts';
import type { ModelConfig } from '../config/model-config.ts';
import { size, type Range } from '../config/shard-plan.ts';
import type { Checkpoint, LayerRole, ModelRole, Weight, WeightShape } from './checkpoint.ts';
import { layerRoles, modelRoles } from './checkpoint.ts';
import { openSizes } from './config-only.ts';
import { fromFloat32 } from './dequantize.ts';
import { openCheckpoint } from './open.ts';
import { weightLayout } from './tensor-types.ts';

const scheme = 'dummy:';
/** Rows start at different places of one table of random numbers: a power of two. */
const tableLength = 2 ** 16;

/** A model's files, or what a path `dummy:LAYERS:CONFIG` stands for. */
export async function openModelPath(path: string): Promise<Checkpoint> {
  if (!path.startsWith(scheme)) return openCheckpoint(path);
  const [layers = '', ...rest] = path.slice(scheme.length).split(':');
  return openDummy(rest.join(':'), Number(layers));
}

/** @param layers how many layers to make; 0: as many as config.json says  @throws ConfigError for a config.json that is none */
export async function openDummy(configPath: string, layers: number): Promise<Checkpoint> {
  const path = resolve(configPath);
  if (!path.endsWith('.json')) throw new ConfigError(`--dummy ${configPath}: expected a config.json`);
  const sizes = await openSizes(path);
  const numLayers = layers === 0 ? sizes.config.numLayers : layers;
  if (numLayers > sizes.config.numLayers)
    throw new ConfigError(`--layers ${layers}: ${configPath} has ${sizes.config.numLayers} layers`);
  const config = {
    ...sizes.config,
    numLayers,
    slidingWindows: sizes.config.slidingWindows.slice(0, numLayers),
  };
  return new DummyCheckpoint(`${scheme}${numLayers}:${path}`, config, sizes);
}

class DummyCheckpoint implements Checkpoint {
  readonly path: string;
  readonly format = 'safetensors';
  readonly config: ModelConfig;
  readonly weightFileBytes: number;
  readonly identity: string;
  readonly #sizes: Checkpoint;
  readonly #table: Float32Array; // uniform in -1 .. 1

  constructor(path: string, config: ModelConfig, sizes: Checkpoint) {
    this.path = path;
    this.config = config;
    this.identity = `${sizes.identity} ${config.numLayers} random`;
    this.#sizes = sizes;
    this.#table = randomTable();
    this.weightFileBytes = this.#countBytes();
  }

  /** Without the biases that a family calls optional, and with one table of rotary frequencies for all layers. */
  shapeOf(role: ModelRole | LayerRole, layer?: number): WeightShape | undefined {
    if (role.endsWith('Bias') || role === 'ropeFrequencies') return undefined;
    if (role === 'head' && this.config.tiedEmbeddings) return undefined;
    return this.#sizes.shapeOf(role, layer);
  }

  read(role: ModelRole | LayerRole, layer?: number, rows?: Range, cols?: Range): Promise<Weight> {
    const shape = this.shapeOf(role, layer);
    if (shape === undefined) throw new ConfigError(`${this.path}: no ${role} in this model`);
    const rowRange = rows ?? { start: 0, end: shape.rows };
    const colRange = cols ?? { start: 0, end: shape.cols };
    const width = size(colRange);
    const values = new Float32Array(size(rowRange) * width);
    if (role.endsWith('Norm')) values.fill(1);
    else {
      // Products keep the size of their input.
      const scale = Math.sqrt(3 / shape.cols);
      const seed = hash([...layerRoles, ...modelRoles].indexOf(role) + 64 * (layer ?? 0));
      for (let row = 0; row < size(rowRange); row++) {
        const start = hash(seed + rowRange.start + row);
        for (let column = 0; column < width; column++)
          values[row * width + column] =
            scale * (this.#table[(start + colRange.start + column) & (tableLength - 1)] ?? 0);
      }
    }
    const bytes =
      shape.type === 'f32' ? new Uint8Array(values.buffer) : fromFloat32(values, shape.type === 'f16' ? 'f16' : 'bf16');
    return Promise.resolve({ ...shape, rows: size(rowRange), cols: width, bytes });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#sizes[Symbol.asyncDispose]();
  }

  #countBytes(): number {
    const layers = Array.from({ length: this.config.numLayers }, (_, layer) => layer);
    const shapes = [
      ...modelRoles.map((role) => this.shapeOf(role)),
      ...layers.flatMap((layer) => layerRoles.map((role) => this.shapeOf(role, layer))),
    ];
    return shapes.reduce((sum, shape) => {
      if (shape === undefined) return sum;
      const { blockBytes, blockSize } = weightLayout(shape.type);
      return sum + ((shape.rows * shape.cols) / blockSize) * blockBytes;
    }, 0);
  }
}

function randomTable(): Float32Array {
  const table = new Float32Array(tableLength);
  for (let i = 0; i < tableLength; i++) table[i] = hash(i) / 2 ** 31 - 1;
  return table;
}

/** Mixes the bits of a whole number. @returns 0 .. 2^32 - 1 */
function hash(value: number): number {
  let h = (value + 0x9e3779b9) | 0;
  h = Math.imul(h ^ (h >>> 16), 0x21f0aaad);
  h = Math.imul(h ^ (h >>> 15), 0x735a2d97);
  return (h ^ (h >>> 15)) >>> 0;
}
