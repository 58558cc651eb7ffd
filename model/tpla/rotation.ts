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
import { openSafetensors } from '../safetensors.ts';

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
    const name = `layers.${layer}.pca`;
    const tensor = file.tensors.get(name);
    if (tensor === undefined || tensor.type !== 'f32' || tensor.shape.join() !== `${latentDim},${latentDim}`)
      throw new ConfigError(
        `${path}: ${name} is ${tensor === undefined ? 'missing' : `${tensor.type} [${tensor.shape.join(', ')}]`}, expected f32 [${latentDim}, ${latentDim}]; convert the model again`,
      );
    const bytes = await tensor.file.read(tensor.offset, latentDim * latentDim * 4, name);
    rotations.push(new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)));
  }
  return rotations;
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
