/** The inputs that programs of one shape of chunk need to score first and last tokens exactly; see recent-tokens.ts. */
import { invariant } from '../../config/errors.ts';
import type { RecentInputs, RecentSegment } from '../attention-inputs.ts';
import { joinMasks, type Chunk, type ChunkSegment } from '../chunks.ts';
import type { Kernels, Tensor } from '../kernels/kernels.ts';
import { bytesOf } from '../rank-parts.ts';
import { exactMask, exactMaskInRing, type RecentTokens } from './recent-tokens.ts';

export class RecentChunk implements Disposable {
  private readonly kernels: Kernels;
  private readonly recent: RecentTokens;
  private readonly indices: Tensor; // [tokens] i32
  /** Near tokens of chunks of one token per sequence are written before they are read: nothing has to be copied beside them. */
  private readonly writesFirst: boolean;
  /** For each sliding window that some layer has: of each run of the chunk. */
  private readonly segments: ReadonlyMap<number, readonly RecentSegment[]>;

  /** @param slidingWindows 0 for layers that see all tokens */
  constructor(kernels: Kernels, recent: RecentTokens, chunk: Chunk, slidingWindows: Iterable<number>) {
    this.kernels = kernels;
    this.recent = recent;
    this.writesFirst = recent.kept !== undefined && chunk.segments.every(({ length }) => length === 1);
    this.indices = kernels.allocate('i32', [chunk.tokens.length]);
    const rows = recent.rowsPerSlot;
    const segmentsOf = (): RecentSegment[] =>
      chunk.runs.map(({ length: sequences, 0: { slot, length } }) => ({
        start: slot * rows,
        rows,
        mask: kernels.allocate('f32', [
          ...(sequences === 1 ? [] : [sequences]),
          ...(this.writesFirst ? [1, rows] : [length, rows + length]),
        ]),
        even: kernels.allocate('f32', [length * sequences, 2]),
      }));
    this.segments = new Map([...slidingWindows].map((sliding) => [sliding, segmentsOf()]));
  }

  inputsOf(layer: number, sliding: number): RecentInputs {
    const rows = this.recent.layers[layer];
    const segments = this.segments.get(sliding);
    invariant(rows !== undefined && segments !== undefined, `layer ${layer} with a sliding window of ${sliding}`);
    return { rows, indices: this.indices, segments, writesFirst: this.writesFirst };
  }

  load(chunk: Chunk): void {
    this.kernels.upload(this.indices, bytesOf(this.recent.rowsOf(chunk)));
    for (const [sliding, segments] of this.segments)
      chunk.runs.forEach((run, i) => {
        const mask = segments[i]?.mask;
        invariant(mask !== undefined, `segment ${i} of ${segments.length}`);
        this.kernels.upload(mask, bytesOf(joinMasks(run.map((segment) => this.maskOf(segment, sliding)))));
      });
  }

  private maskOf(segment: ChunkSegment, sliding: number): Float32Array {
    const maskOf = this.writesFirst ? exactMaskInRing : exactMask;
    return maskOf(segment, this.recent.sizes, this.recent.validFrom(segment.slot), sliding);
  }

  [Symbol.dispose](): void {
    const masks = [...this.segments.values()].flatMap((segments) => segments.flatMap(({ mask, even }) => [mask, even]));
    this.kernels.release([this.indices, ...masks]);
  }
}
