/** What attention of one chunk reads beside weights and cache. Made by programs.ts, read by attention.ts and schemes/. */
import type { Tensor } from './kernels/kernels.ts';

/** Consecutive tokens of one sequence inside a chunk; or one token of each of several sequences, in slots side by side. */
export interface Segment {
  /** First row of the chunk. */
  readonly offset: number;
  /** Of each sequence. */
  readonly length: number;
  readonly sequences: number;
  /** First cache row of the first sequence's slot. */
  readonly cacheStart: number;
  /** Rows read of each slot: the sequence's length after this chunk, padded. */
  readonly cacheRows: number;
  /** [length, cacheRows], of several sequences [sequences, length, cacheRows]: 0 where visible, -Infinity elsewhere */
  readonly mask: Tensor;
}

/** Rows of the chunk. */
export function tokensIn({ length, sequences }: Segment): number {
  return length * sequences;
}

export interface AttentionInputs {
  readonly positions: Tensor; // [tokens] i32
  /** Cache row that each token is written to. */
  readonly cacheRows: Tensor; // [tokens] i32
  /** The same for each number of values that are cached by column; undefined where none are. */
  readonly valueCells: Tensor | undefined; // [tokens * localKvHeads * headDim] i32
  readonly rowsPerSlot: number;
  readonly segments: readonly Segment[];
  /** Set where keys and values are expanded rather than W_UK and W_UV absorbed: for each segment the rows it reads. [cacheRows] i32 */
  readonly expanded: readonly Tensor[] | undefined;
  /** Set when prefill is exact although the cache is a shard: whole latents of the sequence. */
  readonly staging: { readonly rows: Tensor; readonly indices: Tensor } | undefined; // [rowsPerSlot, r + p], [tokens] i32
  /** Set where the first and last tokens have rows beside those of all: whole latents, or keys and values of near tokens. */
  readonly recent: RecentInputs | undefined;
}

export interface RecentInputs {
  readonly rows: Tensor; // [slots * recentRows + 1, numbers of a token]
  /** Row that each token is written to. */
  readonly indices: Tensor; // [tokens] i32
  readonly segments: readonly RecentSegment[];
  /** The chunk's rows are written before the segments read them, and masks have no columns for the chunk's own tokens. */
  readonly writesFirst: boolean;
}

/** Of one Segment. */
export interface RecentSegment {
  /** First row of the first sequence's slot, and how many each slot has. */
  readonly start: number;
  readonly rows: number;
  /** 0 where visible, -Infinity elsewhere: [length, rows + length], or [1, rows]; of several sequences [sequences, 1, rows] */
  readonly mask: Tensor;
  readonly even: Tensor; // [length * sequences, 2] zeros
}
