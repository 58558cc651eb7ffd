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
  readonly segments: readonly ChunkSegment[];
  /** The same segments, those together that one attention takes at once. */
  readonly runs: readonly ChunkRun[];
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

/** One segment; or several of one token each, in slots side by side, that read equally many rows. */
export type ChunkRun = readonly [ChunkSegment, ...ChunkSegment[]];

/** @param joins whether a run may have several segments, in chunks of one token per sequence */
export function chunksOf(step: Step, layout: RowLayout, joins = false): Chunk[] {
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
    chunks.push(chunkOf(pieces, layout, firstRow, joins));
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

function chunkOf(pieces: readonly Piece[], layout: RowLayout, firstRow: number, canJoinPieces: boolean): Chunk {
  // Beside a block, as when requests are computed again, rows of near tokens are read before they are written.
  const joins = canJoinPieces && pieces.every(({ tokens }) => tokens.length === 1);
  const together = joins ? joinPieces(pieces, layout) : pieces.map((piece): PieceRun => [piece]);
  const readStep = readStepOf(layout.readStep, together.length, joins);
  let offset = 0;
  const runs = together.map((run): ChunkRun => {
    const length = run[0].tokens.length;
    const rows = Math.max(...run.map((piece) => rowsOf(piece, layout)));
    const paddedRows = Math.min(layout.rowsPerSlot, readLength(rows, length, readStep));
    const segmentOf = ({ slot, start }: Piece, i: number): ChunkSegment => ({
      slot,
      offset: offset + i * length,
      length,
      start,
      paddedRows,
    });
    const [first, ...others] = run;
    const joined: ChunkRun = [segmentOf(first, 0), ...others.map((piece, i) => segmentOf(piece, i + 1))];
    offset += run.length * length;
    return joined;
  });
  return {
    tokens: pieces.flatMap((piece) => piece.tokens),
    positions: pieces.flatMap((piece) => piece.tokens.map((_, i) => piece.start + i)),
    cacheRows: pieces.flatMap((piece) => piece.tokens.map((_, i) => rowOf(layout, piece.slot, piece.start + i))),
    segments: runs.flat(),
    runs,
    signature: runs.map((run) => `${run[0].slot}+${run.length}:${run[0].length}:${run[0].paddedRows}`).join(' '),
    firstRow,
  };
}

type PieceRun = [Piece, ...Piece[]];

/** Rows that a join may read in vain: a quarter of what its sequences need, or so many. */
const vainRows = { share: 0.25, least: 512 };
/** Latents are widened before they are multiplied, all rows of a run at once: 19 MB for 576 numbers each. */
const mostRows = 8192;

/**
 * An attention per sequence has ten nodes in every layer, and a program to be made anew whenever one of the sequences
 * comes, goes or grows past its padding. One for all of them reads as many rows of each as the longest needs.
 */
function joinPieces(pieces: readonly Piece[], layout: RowLayout): PieceRun[] {
  const runs: PieceRun[] = [];
  for (const piece of pieces) {
    const run = runs.at(-1);
    if (run !== undefined && canJoin([...run, piece], layout)) run.push(piece);
    else runs.push([piece]);
  }
  return runs;
}

function canJoin(pieces: readonly Piece[], layout: RowLayout): boolean {
  const first = pieces[0]?.slot ?? 0;
  if (pieces.some(({ slot, tokens }, i) => slot !== first + i || tokens.length !== 1)) return false;
  const rows = pieces.map((piece) => rowsOf(piece, layout));
  const needed = rows.reduce((sum, each) => sum + each, 0);
  const read = pieces.length * Math.max(...rows);
  return read <= mostRows && read - needed <= Math.max(vainRows.least, vainRows.share * needed);
}

/** What this rank keeps of the sequence, the piece's tokens included. */
function rowsOf({ start, tokens }: Piece, { deal }: RowLayout): number {
  return heldPositions(deal, start + tokens.length);
}

function rowOf({ deal, rowsPerSlot, spareRow }: RowLayout, slot: number, position: number): number {
  const row = heldPositions(deal, position);
  return heldPositions(deal, position + 1) > row ? slot * rowsPerSlot + row : spareRow;
}

/**
 * A run alone reads closer to what it needs: 3 % of a token's time for programs made four times as often. With several,
 * each step over a boundary makes programs for all of them.
 */
function readStepOf(readStep: number, runs: number, joins: boolean): number {
  const fine = Math.ceil(readStep / 4 / 32) * 32;
  return joins ? fine * Math.min(4, runs) : runs === 1 ? fine : readStep;
}

/**
 * Long chunks read a coarser padding, at most a quarter too much: the chunks of a long prompt then share few programs,
 * each of which holds score memory of its own.
 */
function readLength(rows: number, newTokens: number, readStep: number): number {
  if (newTokens < 16) return paddedLength(rows, readStep);
  return paddedLength(rows, Math.max(readStep, 2 ** Math.ceil(Math.log2(rows)) / 4));
}

/** Masks of the segments of a run, all of one size, one behind the other. [segments, length, columns] */
export function joinMasks(masks: readonly Float32Array[]): Float32Array {
  const [first = new Float32Array(0)] = masks;
  if (masks.length === 1) return first;
  const joined = new Float32Array(masks.length * first.length);
  masks.forEach((mask, i) => joined.set(mask, i * first.length));
  return joined;
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
