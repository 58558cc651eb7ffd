/**
 * Named tensors of a model on disk, whatever the file format: what gguf.ts and safetensors.ts produce and
 * stored-checkpoint.ts reads. A store holds positions, not data.
 */
import type { RangedFile } from './ranged-file.ts';

export interface StoredTensor {
  readonly name: string;
  /** A name of tensor-types.ts. */
  readonly type: string;
  /** Outermost first, row-major (GGUF's dimension list reversed). */
  readonly shape: readonly number[];
  readonly file: RangedFile;
  /** Position of the first byte in the file. */
  readonly offset: number;
  readonly bytes: number;
}

export interface TensorStore extends AsyncDisposable {
  readonly format: 'gguf' | 'safetensors';
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** Bytes of all files together. */
  readonly fileBytes: number;
}
