/**
 * Cuts the tokens of a step into chunks that one program takes at once, and says which cache rows each chunk writes,
 * reads and may see. Pure arithmetic; programs.ts turns a chunk's signature into programs and its numbers into inputs.
 */
import type { Step } from '../collective/messages.ts';
import { cacheBlock, paddedLength } from './latent-cache.ts';

/** Most tokens of one chunk: matrix products reach full speed here, and scores stay small. */
export const chunkTokens = 256;

export interface Chunk {
  readonly tokens: number[];
  readonly positions: number[];
  /** Row of the cache that each token is written to. */
  readonly cacheRows: number[];
  readonly segments: ChunkSegment[];
  /** Equal for chunks that the same programs can compute. */
  readonly signature: string;
  /** Row of the step's first token of this chunk. */
  readonly firstRow: number;
}

export interface ChunkSegment {
  readonly slot: number;
  /** First row of the chunk. */
  readonly offset: number;
  readonly length: number;
  /** Position of the first token. */
  readonly start: number;
  /** Cache rows read: enough for start + length. */
  readonly paddedRows: number;
}

export function chunksOf(step: Step, rowsPerSlot: number): Chunk[] {
  const chunks: Chunk[] = [];
  let pieces: Piece[] = [];
  let filled = 0;
  let firstRow = 0;
  for (const sequence of step.sequences) {
    for (let done = 0; done < sequence.tokens.length;) {
      const length = Math.min(chunkTokens - filled, sequence.tokens.length - done);
      pieces.push({
        slot: sequence.slot,
        start: sequence.start + done,
        tokens: sequence.tokens.slice(done, done + length),
      });
      filled += length;
      done += length;
      if (filled === chunkTokens) flush();
    }
  }
  if (filled > 0) flush();
  return chunks;

  function flush(): void {
    chunks.push(chunkOf(pieces, rowsPerSlot, firstRow));
    firstRow += filled;
    pieces = [];
    filled = 0;
  }
}

interface Piece {
  readonly slot: number;
  readonly start: number;
  readonly tokens: number[];
}

function chunkOf(pieces: readonly Piece[], rowsPerSlot: number, firstRow: number): Chunk {
  const segments: ChunkSegment[] = [];
  let offset = 0;
  for (const { slot, start, tokens } of pieces) {
    const length = tokens.length;
    segments.push({
      slot,
      offset,
      length,
      start,
      paddedRows: Math.min(rowsPerSlot, readLength(start + length, length)),
    });
    offset += length;
  }
  return {
    tokens: pieces.flatMap((piece) => piece.tokens),
    positions: pieces.flatMap((piece) => piece.tokens.map((_, i) => piece.start + i)),
    cacheRows: pieces.flatMap((piece) => piece.tokens.map((_, i) => piece.slot * rowsPerSlot + piece.start + i)),
    segments,
    signature: segments.map((s) => `${s.slot}:${s.length}:${s.paddedRows}`).join(' '),
    firstRow,
  };
}

/**
 * Long chunks read a coarser padding, at most a quarter too much: the chunks of a long prompt then share few programs,
 * each of which holds score memory of its own.
 */
function readLength(length: number, newTokens: number): number {
  if (newTokens < 16) return paddedLength(length);
  const step = Math.max(cacheBlock, 2 ** Math.ceil(Math.log2(length)) / 4);
  return Math.ceil(length / step) * step;
}

/**
 * 0 where the token at row t of the segment may see cache row s, -Infinity elsewhere. [length, paddedRows]
 * @param window positions that a token sees, its own included; 0: all before it
 */
export function causalMask({ length, start, paddedRows }: ChunkSegment, window: number): Float32Array {
  const mask = new Float32Array(length * paddedRows).fill(-Infinity);
  for (let t = 0; t < length; t++) {
    const end = start + t + 1;
    mask.fill(0, t * paddedRows + (window === 0 ? 0 : Math.max(0, end - window)), t * paddedRows + end);
  }
  return mask;
}
