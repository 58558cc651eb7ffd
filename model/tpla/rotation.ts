/**
 * Rotations of the latent before it is cut into shards (TPLA, arXiv 2508.15881, section 4.2). Each is an orthogonal U
 * [r, r], rows = new basis vectors, c' = U c; exact as long as nothing is cut.
 *
 * none, weighted: the latent as it stands. A converted model's latent is already in the order of the converter's
 *   weighted PCA, largest first, which respects the queries; rotating it again would destroy that.
 * pca: eigenvectors of the latent's plain second moment, largest first, from the file that the converter wrote.
 * hadamard: spreads every direction evenly over the shards; needs no calibration.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ConfigError } from '../../config/errors.ts';
import type { ModelConfig } from '../../config/model-config.ts';
import type { Range } from '../../config/shard-plan.ts';
import { openSafetensors, type SafetensorsFile } from '../safetensors.ts';

export type Reparameterization = 'weighted' | 'pca' | 'hadamard' | 'none';

/** Written beside the checkpoint by the converter: `layers.N.pca` [r, r]. */
export const rotationFileName = 'tpla_rotation.safetensors';

/** One U [r, r] per layer, or undefined where the latent stays as it is. @throws ConfigError when a file is needed and missing */
export async function loadRotations(
  checkpointPath: string,
  model: ModelConfig,
  kind: Reparameterization,
): Promise<(Float32Array | undefined)[]> {
  const attention = model.attention;
  if (attention.kind === 'gqa' || kind === 'weighted' || kind === 'none')
    return new Array<undefined>(model.numLayers).fill(undefined);
  if (kind === 'hadamard') {
    const rotation = hadamardRotation(attention.latentDim);
    return new Array<Float32Array>(model.numLayers).fill(rotation);
  }
  return await readPca(checkpointPath, model.numLayers, attention.latentDim);
}

async function readPca(checkpointPath: string, numLayers: number, latentDim: number): Promise<Float32Array[]> {
  const path = join(checkpointPath, rotationFileName);
  if (!existsSync(path))
    throw new ConfigError(
      `reparameterization: pca needs ${path}, which tpla convert writes; it is not there; use --reparam hadamard or weighted`,
    );
  await using file = await openSafetensors(path);
  const rotations: Float32Array[] = [];
  for (let layer = 0; layer < numLayers; layer++) {
    rotations.push(await readTensor(file, path, `layers.${layer}.pca`, [latentDim, latentDim]));
  }
  return rotations;
}

/** @throws ConfigError when it is missing or of another type or shape */
async function readTensor(
  file: SafetensorsFile,
  path: string,
  name: string,
  shape: readonly number[],
): Promise<Float32Array> {
  const tensor = file.tensors.get(name);
  if (tensor === undefined || tensor.type !== 'f32' || tensor.shape.join() !== shape.join())
    throw new ConfigError(
      `${path}: ${name} is ${tensor === undefined ? 'missing' : `${tensor.type} [${tensor.shape.join(', ')}]`}, expected f32 [${shape.join(', ')}]; convert the model again`,
    );
  const count = shape.reduce((product, size) => product * size, 1);
  const bytes = await tensor.file.read(tensor.offset, count * 4, name);
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
}

/**
 * Mean square of each column of the rotated latent, as shares of their sum, per layer: diag(U V^T diag(e) V U^T) with the
 * principal axes V and energies e of the file. Without a file all columns count alike, which is what Hadamard aims at.
 */
export async function loadEnergyShares(
  checkpointPath: string,
  model: ModelConfig,
  rotations: readonly (Float32Array | undefined)[],
): Promise<Float64Array[]> {
  const { attention } = model;
  if (attention.kind === 'gqa') return [];
  const r = attention.latentDim;
  const path = join(checkpointPath, rotationFileName);
  if (!existsSync(path)) return rotations.map(() => new Float64Array(r).fill(1 / r));
  await using file = await openSafetensors(path);
  const shares: Float64Array[] = [];
  for (const [layer, rotation] of rotations.entries()) {
    const axes = await readTensor(file, path, `layers.${layer}.pca`, [r, r]);
    const energy = await readTensor(file, path, `layers.${layer}.energy`, [r]);
    shares.push(sharesOf(axes, energy, rotation, r));
  }
  return shares;
}

/** Root mean square of a shard times this stands for that of the whole latent: sqrt(s r / w), s the share of its w columns. */
export function shardNormFactor(shares: Float64Array, { start, end }: Range): number {
  const share = shares.subarray(start, end).reduce((sum, value) => sum + value, 0);
  return Math.sqrt((share * shares.length) / (end - start));
}

/** @param axes [r, r]  @param energy [r]  @param rotation [r, r] or none */
function sharesOf(
  axes: Float32Array,
  energy: Float32Array,
  rotation: Float32Array | undefined,
  r: number,
): Float64Array {
  const shares = new Float64Array(r);
  const total = energy.reduce((sum, value) => sum + value, 0);
  for (let column = 0; column < r; column++)
    for (let i = 0; i < r; i++) {
      let along = 0;
      if (rotation === undefined) along = axes[i * r + column] ?? 0;
      else for (let k = 0; k < r; k++) along += (rotation[column * r + k] ?? 0) * (axes[i * r + k] ?? 0);
      shares[column] = (shares[column] ?? 0) + ((energy[i] ?? 0) * along * along) / total;
    }
  return shares;
}

/**
 * Sylvester's Hadamard matrix of the largest power of two in r, Kronecker a small orthogonal matrix for the odd rest,
 * columns times fixed random signs. Row-major [r, r].
 */
export function hadamardRotation(dim: number): Float32Array {
  let power = 1;
  while (dim % (power * 2) === 0) power *= 2;
  const rest = dim / power;
  const small = cosineBasis(rest); // [rest, rest]
  const signs = randomSigns(dim);
  const rotation = new Float32Array(dim * dim);
  for (let i = 0; i < dim; i++)
    for (let j = 0; j < dim; j++) {
      const a = Math.floor(i / power);
      const b = Math.floor(j / power);
      const hadamard = parity((i % power) & (j % power)) === 0 ? 1 : -1;
      rotation[i * dim + j] = (hadamard / Math.sqrt(power)) * (small[a * rest + b] ?? 0) * (signs[j] ?? 1);
    }
  return rotation;
}

/** The orthonormal type-II discrete cosine basis. [n, n] */
function cosineBasis(n: number): Float64Array {
  const basis = new Float64Array(n * n);
  for (let k = 0; k < n; k++)
    for (let j = 0; j < n; j++)
      basis[k * n + j] = Math.sqrt((k === 0 ? 1 : 2) / n) * Math.cos((Math.PI * (j + 0.5) * k) / n);
  return basis;
}

function parity(bits: number): number {
  let ones = 0;
  for (let rest = bits; rest > 0; rest >>>= 1) ones ^= rest & 1;
  return ones;
}

/** The same signs on every rank and in every run: a multiplicative congruential generator with a fixed seed. */
function randomSigns(count: number): number[] {
  let state = 20_250_821;
  return Array.from({ length: count }, () => {
    state = (state * 48_271) % 2_147_483_647;
    return state > 1_073_741_823 ? 1 : -1;
  });
}
