/**
 * Rows of the first tokens (sinks) and the last ones (window) of every slot. Scheme tpla scores these tokens exactly, by
 * whole latents, and only the rest by its shard; a rank can keep them without an exchange, because every rank computes
 * the whole latent of each new token anyway. Of a converted model with near tokens they are the heads' keys and values.
 *
 * Per slot the rows are sinks, position p in row p, then a ring of `window` rows, position p in row sinks + p mod window,
 * then some that are never seen (recentRows).
 * A chunk's own tokens are scored from what it just computed; ring rows are written after they have been read, so that a
 * block of tokens sees what the same tokens see one by one. Read next: windowed.ts, near-heads.ts.
 */
import { invariant } from '../../config/errors.ts';
import { recentRows } from '../../config/recent-numbers.ts';
import { heldPositions, type Deal, type ExactTokens } from '../../config/shard-plan.ts';
import type { Chunk, ChunkSegment } from '../chunks.ts';
import type { Kernels, Tensor } from '../kernels/kernels.ts';
import { KeptRows } from './kept-rows.ts';

interface SlotState {
  /** Tokens written. */
  end: number;
  /** The first position whose ring row has not been overwritten by a later one. */
  validFrom: number;
  /** The same behind the prompt, whose rows are kept. */
  prompt: { readonly end: number; readonly validFrom: number } | undefined;
  /** The last step was one of a prompt. */
  inPrompt: boolean;
}

export class RecentTokens {
  readonly sizes: ExactTokens;
  readonly rowsPerSlot: number;
  /** Of each layer, with a spare row for tokens that are not kept. [slots * rowsPerSlot + 1, width] f32 */
  readonly layers: readonly Tensor[];
  /** Copies of all slots' rows behind their prompts; undefined: prompts do not go on from earlier ones. */
  readonly kept: KeptRows | undefined;
  private readonly slots: SlotState[];

  /** @param keepsPrompts see kept-rows.ts */
  constructor(
    kernels: Kernels,
    sizes: ExactTokens,
    numLayers: number,
    slots: number,
    width: number,
    keepsPrompts = false,
  ) {
    this.sizes = sizes;
    this.rowsPerSlot = recentRows(sizes);
    this.layers = Array.from({ length: numLayers }, () =>
      kernels.allocate('f32', [slots * this.rowsPerSlot + 1, width]),
    );
    this.kept = keepsPrompts ? new KeptRows(kernels, this.layers, slots, this.rowsPerSlot, width) : undefined;
    this.slots = Array.from({ length: slots }, () => ({ end: 0, validFrom: 0, prompt: undefined, inPrompt: false }));
  }

  /**
   * Called once per step, before its first layer. A sequence may begin again before its end: those rows are lost, unless it
   * begins where its prompt ended.
   */
  begin(
    sequences: readonly { slot: number; start: number; tokens: readonly number[] }[],
    phase: 'prefill' | 'decode' = 'decode',
  ): void {
    for (const { slot, start, tokens } of sequences) {
      const state = this.slots[slot];
      invariant(state !== undefined, `slot ${slot} of ${this.slots.length}`);
      if (start === 0) state.prompt = undefined;
      if (this.kept !== undefined && phase === 'decode' && state.inPrompt && start === state.end) {
        this.kept.save(slot);
        state.prompt = { end: state.end, validFrom: state.validFrom };
      }
      if (start < state.end && state.prompt?.end === start) {
        this.kept?.restore(slot);
        state.validFrom = state.prompt.validFrom;
      } else if (start < state.end) state.validFrom = Math.max(state.validFrom, state.end - this.sizes.window);
      if (state.prompt !== undefined && start < state.prompt.end) state.prompt = undefined;
      state.validFrom = Math.min(state.validFrom, start);
      state.end = start + tokens.length;
      state.inPrompt = phase === 'prefill';
    }
  }

  validFrom(slot: number): number {
    return this.slots[slot]?.validFrom ?? 0;
  }

  /** The row that each token of a chunk is written to; of tokens with the same ring row only the last has one. */
  rowsOf(chunk: Chunk): Int32Array {
    const { sinks, window } = this.sizes;
    const rows = new Int32Array(chunk.tokens.length).fill(this.slots.length * this.rowsPerSlot);
    for (const { slot, offset, start, length } of chunk.segments)
      for (let i = 0; i < length; i++) {
        const position = start + i;
        const first = slot * this.rowsPerSlot;
        if (position < sinks) rows[offset + i] = first + position;
        else if (i >= length - window) rows[offset + i] = first + sinks + (position % window);
      }
    return rows;
  }
}

/** What a token at `position` may see: `sliding` positions, its own included, or with 0 all before it. */
function sees(position: number, other: number, sliding: number): boolean {
  return other <= position && (sliding === 0 || other > position - sliding);
}

/**
 * Visible among [sinks | ring | the segment's own tokens]: the first `sinks` positions and the last `window`, unless their
 * ring row is lost. [length, recentRows + length]
 */
export function exactMask(
  { start, length }: ChunkSegment,
  sizes: ExactTokens,
  validFrom: number,
  sliding: number,
): Float32Array {
  const { sinks, window } = sizes;
  const rows = recentRows(sizes);
  const width = rows + length;
  const mask = new Float32Array(length * width).fill(-Infinity);
  for (let t = 0; t < length; t++) {
    const position = start + t;
    const show = (other: number, column: number): void => {
      if (sees(position, other, sliding)) mask[t * width + column] = 0;
    };
    for (let other = 0; other < Math.min(sinks, start); other++) show(other, other);
    for (let other = Math.max(sinks, validFrom, position - window + 1); other < start; other++)
      show(other, sinks + (other % window));
    for (let other = start; other <= position; other++)
      if (other < sinks || other > position - window) show(other, rows + other - start);
  }
  return mask;
}

/**
 * exactMask for a segment of one token whose row is in the ring already: it overwrote one that the token does not see.
 * [1, recentRows]
 */
export function exactMaskInRing(
  segment: ChunkSegment,
  sizes: ExactTokens,
  validFrom: number,
  sliding: number,
): Float32Array {
  const { sinks, window } = sizes;
  const mask = exactMask(segment, sizes, validFrom, sliding).slice(0, recentRows(sizes));
  const { start } = segment;
  if (start < sinks) mask[start] = 0;
  else if (window > 0) mask[sinks + (start % window)] = 0;
  return mask;
}

/**
 * Visible among the cache's rows: every position that a token sees and exactMask hides. [length, paddedRows]
 * @param deal which positions the rows hold
 */
export function restMask(
  { start, length, paddedRows }: ChunkSegment,
  { sinks, window }: ExactTokens,
  deal: Deal,
  validFrom: number,
  sliding: number,
): Float32Array {
  const held = positionsHeld(deal, sinks, start + length);
  const firstRow = heldPositions(deal, sinks);
  const mask = new Float32Array(length * paddedRows).fill(-Infinity);
  for (let t = 0; t < length; t++) {
    const position = start + t;
    for (const [i, other] of held.entries()) {
      if (other > position) break;
      const isLost = other < start && other < validFrom;
      if ((other <= position - window || isLost) && sees(position, other, sliding))
        mask[t * paddedRows + firstRow + i] = 0;
    }
  }
  return mask;
}

/** Those that the deal gives to this rank, in order. */
function positionsHeld(deal: Deal, start: number, end: number): Int32Array {
  const held = new Int32Array(Math.max(0, heldPositions(deal, end) - heldPositions(deal, start)));
  let count = 0;
  for (let position = start; position < end; position++)
    if (heldPositions(deal, position + 1) > heldPositions(deal, position)) held[count++] = position;
  return held;
}
