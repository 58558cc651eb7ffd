/**
 * Matrices that carry a calibration's streams from token to token. They are 8-bit where the backend multiplies those in a
 * fast layout of its own, which takes a quarter of the time; the streams then differ by what a quantised model's own
 * activations differ, and sums over thousands of tokens by much less. Float32 otherwise.
 */
import { invariant } from '../../config/errors.ts';
import type { Backend } from '../backend.ts';
import type { Tensor } from '../kernels/kernels.ts';
import { bytesOf } from '../rank-parts.ts';

export class FastMatrices {
  private readonly backend: Backend;
  private readonly isFast: boolean;

  /** @param isFast false: float32 everywhere */
  constructor(backend: Backend, isFast: boolean) {
    this.backend = backend;
    this.isFast = isFast;
  }

  allocate(shape: readonly [number, number]): Tensor {
    const { kernels, quantize } = this.backend;
    const block = 32;
    const isPacked = this.isFast && quantize !== undefined && shape[1] % block === 0 && kernels.repacks('q8_0', shape);
    return isPacked ? kernels.allocate('q8_0', shape, 'matmul') : kernels.allocate('f32', shape);
  }

  /** @param values row-major, as many as the matrix has */
  upload(matrix: Tensor, values: Float32Array): void {
    const { kernels, quantize } = this.backend;
    if (matrix.type === 'f32') return kernels.upload(matrix, bytesOf(values));
    const [rows = 0, cols = 0] = matrix.shape;
    invariant(quantize !== undefined, 'an 8-bit matrix without a quantiser');
    kernels.upload(matrix, quantize('q8_0', values, rows, cols));
  }
}
