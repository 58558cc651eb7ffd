/**
 * Cuts the tokens of a step into chunks that one program takes at once, and says which cache rows each chunk writes,
 * reads and may see. Pure arithmetic; programs.ts turns a chunk's signature into programs and its numbers into inputs.
 */
import type { Step } from '../collective/messages.ts';
import { heldPositions, type Deal } from '../config/shard-plan.ts';
import { paddedLength, type RowLayout } from './latent-cache.ts';

/** Most tokens of one chunk: matrix products reach full speed here, and scores stay small. */
export const chunkTokens = 256;

export interface Chunk {
  readonly tokens: number[];
  readonly positions: number[];
  /** Row of the cache that each token is written to; the spare one where another rank keeps the token. */
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
  /** Cache rows read: enough for what this rank keeps of start + length tokens. */
  readonly paddedRows: number;
}

export function chunksOf(step: Step, layout: RowLayout): Chunk[] {
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
    chunks.push(chunkOf(pieces, layout, firstRow));
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

function chunkOf(pieces: readonly Piece[], layout: RowLayout, firstRow: number): Chunk {
  const segments: ChunkSegment[] = [];
  const readStep = pieces.length === 1 ? stepOfOne(layout.readStep) : layout.readStep;
  let offset = 0;
  for (const { slot, start, tokens } of pieces) {
    const length = tokens.length;
    segments.push({
      slot,
      offset,
      length,
      start,
      paddedRows: Math.min(
        layout.rowsPerSlot,
        readLength(heldPositions(layout.deal, start + length), length, readStep),
      ),
    });
    offset += length;
  }
  return {
    tokens: pieces.flatMap((piece) => piece.tokens),
    positions: pieces.flatMap((piece) => piece.tokens.map((_, i) => piece.start + i)),
    cacheRows: pieces.flatMap((piece) => piece.tokens.map((_, i) => rowOf(layout, piece.slot, piece.start + i))),
    segments,
    signature: segments.map((s) => `${s.slot}:${s.length}:${s.paddedRows}`).join(' '),
    firstRow,
  };
}

function rowOf({ deal, rowsPerSlot, spareRow }: RowLayout, slot: number, position: number): number {
  const row = heldPositions(deal, position);
  return heldPositions(deal, position + 1) > row ? slot * rowsPerSlot + row : spareRow;
}

/**
 * One sequence alone reads closer to what it needs: 3 % of a token's time for programs made four times as often. With
 * several, each step over a boundary would make programs for all of them.
 */
function stepOfOne(readStep: number): number {
  return Math.ceil(readStep / 4 / 32) * 32;
}

/**
 * Long chunks read a coarser padding, at most a quarter too much: the chunks of a long prompt then share few programs,
 * each of which holds score memory of its own.
 */
function readLength(rows: number, newTokens: number, readStep: number): number {
  if (newTokens < 16) return paddedLength(rows, readStep);
  return paddedLength(rows, Math.max(readStep, 2 ** Math.ceil(Math.log2(rows)) / 4));
}

/**
 * 0 where the token at row t of the segment may see cache row s, -Infinity elsewhere. [length, paddedRows]
 * @param deal which positions the rows hold
 * @param window positions that a token sees, its own included; 0: all before it
 */
export function causalMask({ length, start, paddedRows }: ChunkSegment, deal: Deal, window: number): Float32Array {
  const mask = new Float32Array(length * paddedRows).fill(-Infinity);
  for (let t = 0; t < length; t++) {
    const end = start + t + 1;
    const first = window === 0 ? 0 : heldPositions(deal, Math.max(0, end - window));
    mask.fill(0, t * paddedRows + first, t * paddedRows + heldPositions(deal, end));
  }
  return mask;
}
