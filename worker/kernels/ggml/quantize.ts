/**
 * Converts f32 rows to a storage type with ggml's own encoders, for weights that must be requantised while loading.
 * Refuses rows that are no whole number of blocks.
 */
import type { TensorType } from '../kernels.ts';
import { loadGgml } from './library.ts';
import { STORAGE, byteLength, check, checkShape } from './tensor.ts';

/**
 * @param values [rows, columns], row-major
 * @returns the rows in the storage type, as `upload` takes them
 * @throws BackendUnavailable when ggml is not installed
 */
export function quantize(type: TensorType, values: Float32Array, rows: number, columns: number): Uint8Array {
  const text = `quantize [${rows}, ${columns}] to ${type}`;
  check(type !== 'i32', `${text}: not a type of weights`);
  check(values.length === rows * columns, `${text}: got ${values.length} values`);
  checkShape(type, [rows, columns]);
  const out = new Uint8Array(byteLength(type, [rows, columns]));
  const written = loadGgml().functions.quantizeChunk(STORAGE[type].id, values, out, 0, rows, columns, null);
  check(written === out.byteLength, `${text}: ggml wrote ${written} bytes, expected ${out.byteLength}`);
  return out;
}
