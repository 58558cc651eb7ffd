/**
 * Programs of all layers for one chunk signature, with their input tensors. Built once, reused for every chunk of that
 * shape; the few most recent signatures are kept. Read next: layer.ts for what a program computes.
 */
import { invariant } from '../config/errors.ts';
import { nearTokens } from '../config/near-tokens.ts';
import type { Deal } from '../config/shard-plan.ts';
import type { AttentionInputs } from './attention-inputs.ts';
import { causalMask, joinMasks, type Chunk, type ChunkSegment } from './chunks.ts';
import { bytesOf, type RankParts } from './rank-parts.ts';
import { expandingIsCheaper } from './expanded-heads.ts';
import { createExchange } from './schemes/create-exchange.ts';
import { cellsOfValues } from './value-cache.ts';
import type { Exchange, RankSeat } from './schemes/exchange.ts';
import { RecentChunk } from './schemes/recent-chunk.ts';
import { restMask, type RecentTokens } from './schemes/recent-tokens.ts';
import type { Kernels, ProgramBuilder, ProgramSet, Tensor } from './kernels/kernels.ts';
import { attentionDelta, feedForwardDelta, normed } from './layer.ts';

/** What else than its signature decides which programs a chunk needs. */
export interface ChunkForm {
  /** Whole latents are read from the staging tensor, because the cache is a shard. */
  readonly staged: boolean;
  readonly prefill: boolean;
}

/** Programs of each layer over `x` and the chunk's inputs: attention, in two halves around an exchange or in one, and feed-forward. */
export class ChunkPrograms implements Disposable {
  readonly x: Tensor; // [tokens, hidden]
  private readonly kernels: Kernels;
  private readonly positions: Tensor; // [tokens] i32
  private readonly cacheRows: Tensor; // [tokens] i32
  private readonly valueCells: { readonly tensor: Tensor; readonly width: number } | undefined; // [tokens * width] i32
  private readonly rowsPerSlot: number;
  private readonly stagingRows: Tensor; // [tokens] i32: positions in the one sequence that is being prefilled
  /** For each window that some layer has: of each run. [segments, length, paddedRows], without the first axis where that is 1 */
  private readonly masks: ReadonlyMap<number, readonly Tensor[]>;
  private readonly deal: Deal;
  private readonly recent: RecentTokens | undefined;
  private readonly recentChunk: RecentChunk | undefined;
  private readonly staged: boolean;
  private readonly hasNearTokens: boolean;
  /** For each segment the rows whose keys and values are expanded; undefined: absorbed. [paddedRows] i32 */
  private readonly expanded: readonly Tensor[] | undefined;
  private readonly exchange: Exchange | undefined;
  private readonly set: ProgramSet;
  private loaded: Chunk | undefined;

  constructor(parts: RankParts, seat: RankSeat, chunk: Chunk, { staged, prefill }: ChunkForm) {
    const { kernels, model, weights, cache } = parts;
    this.kernels = kernels;
    this.deal = cache.layout.deal;
    this.recent = cache.recent;
    this.staged = staged;
    this.hasNearTokens = nearTokens(model) !== undefined;
    const tokens = chunk.tokens.length;
    this.x = kernels.allocate('f32', [tokens, model.hiddenDim]);
    this.positions = kernels.allocate('i32', [tokens]);
    this.cacheRows = kernels.allocate('i32', [tokens]);
    this.stagingRows = kernels.allocate('i32', [tokens]);
    this.rowsPerSlot = cache.rowsPerSlot;
    const [first] = cache.layers;
    if (first?.kind === 'keyValue' && first.values.order === 'columns') {
      const width = first.keys.shape[1] ?? 0;
      this.valueCells = { tensor: kernels.allocate('i32', [tokens * width]), width };
    }
    const windowOf = (layer: number): number => model.slidingWindows[layer] ?? 0;
    this.masks = new Map(
      [...new Set(weights.layers.map((_, layer) => windowOf(layer)))].map((window) => [
        window,
        chunk.runs.map(({ length, 0: { length: tokensOfOne, paddedRows } }) =>
          kernels.allocate('f32', [...(length === 1 ? [] : [length]), tokensOfOne, paddedRows]),
        ),
      ]),
    );
    const recentChunk =
      cache.recent === undefined ? undefined : new RecentChunk(kernels, cache.recent, chunk, this.masks.keys());
    this.recentChunk = recentChunk;
    // Staged latents are whole: attention over them is exact without an exchange.
    const exchange = staged ? undefined : createExchange(parts, seat, chunk);
    this.exchange = exchange;
    const whole = staged || (exchange === undefined && seat.plan.latentGroups === 1);
    this.expanded = prefill && whole ? expandedRows(parts, chunk, staged) : undefined;
    const inputsOf = (layer: number): AttentionInputs => ({
      positions: this.positions,
      cacheRows: this.cacheRows,
      valueCells: this.valueCells?.tensor,
      rowsPerSlot: cache.rowsPerSlot,
      segments: chunk.runs.map(({ length: sequences, 0: { offset, length, slot, paddedRows } }, i) => ({
        offset,
        length,
        sequences,
        cacheStart: slot * cache.rowsPerSlot,
        cacheRows: paddedRows,
        mask: defined(this.masks.get(windowOf(layer))?.[i]),
      })),
      expanded: this.expanded,
      staging: staged ? { rows: defined(cache.staging), indices: this.stagingRows } : undefined,
      recent: recentChunk?.inputsOf(layer, windowOf(layer)),
    });
    this.set = kernels.compile(
      weights.layers.flatMap((layer, i): ProgramBuilder[] => {
        const rows = defined(cache.layers[i]);
        const inputs = inputsOf(i);
        const feedForward: ProgramBuilder = (ops) => present(feedForwardDelta(ops, model, layer, this.x));
        if (exchange === undefined)
          return [(ops) => present(attentionDelta(ops, model, layer, rows, this.x, inputs)), feedForward];
        return [
          (ops) => exchange.before(ops, layer, rows, this.x, inputs),
          (ops) => present(exchange.after(ops, layer, rows, inputs)),
          feedForward,
        ];
      }),
    );
  }

  /** Makes the chunk's positions and masks the inputs; does nothing when they already are. */
  load(chunk: Chunk): void {
    if (this.loaded === chunk) return;
    this.kernels.upload(this.positions, bytesOf(Int32Array.from(chunk.positions)));
    this.kernels.upload(this.cacheRows, bytesOf(Int32Array.from(chunk.cacheRows)));
    this.kernels.upload(this.stagingRows, bytesOf(Int32Array.from(chunk.positions)));
    if (this.valueCells !== undefined) {
      const { tensor, width } = this.valueCells;
      this.kernels.upload(tensor, bytesOf(cellsOfValues(chunk.cacheRows, this.rowsPerSlot, width)));
    }
    for (const [window, masks] of this.masks)
      chunk.runs.forEach((run, i) => {
        const mask = joinMasks(run.map((segment) => this.maskOf(segment, window)));
        this.kernels.upload(defined(masks[i]), bytesOf(mask));
      });
    this.recentChunk?.load(chunk);
    this.exchange?.load(chunk);
    this.loaded = chunk;
  }

  /** What the segment's tokens see of the cache's rows; what is scored by rows kept beside them is left out. */
  private maskOf(segment: ChunkSegment, window: number): Float32Array {
    const { recent } = this;
    if (recent === undefined || (this.staged && !this.hasNearTokens)) return causalMask(segment, this.deal, window);
    return restMask(segment, recent.sizes, this.deal, recent.validFrom(segment.slot), window);
  }

  /**
   * This rank's part of the attention's delta for the loaded chunk. Also without a part in it, a rank writes its cache.
   * @param x, delta [tokens, hidden]  @param label names the exchange, if there is one
   */
  async attention(layer: number, x: Float32Array, delta: Float32Array, label: string): Promise<void> {
    this.kernels.upload(this.x, bytesOf(x));
    let index = this.exchange === undefined ? 2 * layer : 3 * layer;
    this.set.run(index);
    if (this.exchange !== undefined) {
      await this.exchange.run(this.set.outputs[index] ?? [], label);
      index++;
      this.set.run(index);
    }
    this.read(index, delta);
  }

  /** This rank's part of the feed-forward's delta. @param x, delta [tokens, hidden] */
  feedForward(layer: number, x: Float32Array, delta: Float32Array): void {
    const index = this.exchange === undefined ? 2 * layer + 1 : 3 * layer + 2;
    if (this.set.outputs[index]?.[0] !== undefined) {
      this.kernels.upload(this.x, bytesOf(x));
      this.set.run(index);
    }
    this.read(index, delta);
  }

  private read(index: number, delta: Float32Array): void {
    const output = this.set.outputs[index]?.[0];
    if (output === undefined) delta.fill(0);
    else this.kernels.download(output, delta);
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.exchange?.[Symbol.dispose]();
    this.recentChunk?.[Symbol.dispose]();
    this.kernels.release([
      this.x,
      this.positions,
      this.cacheRows,
      this.stagingRows,
      ...(this.valueCells === undefined ? [] : [this.valueCells.tensor]),
      ...(this.expanded ?? []),
      ...[...this.masks.values()].flat(),
    ]);
  }
}

/** Row numbers for each segment, where expanding keys and values is cheaper for all of them. */
function expandedRows({ kernels, model, cache }: RankParts, chunk: Chunk, staged: boolean): Tensor[] | undefined {
  const { attention } = model;
  if (attention.kind === 'gqa') return undefined;
  if (!chunk.segments.every(({ length, paddedRows }) => expandingIsCheaper(attention, length, paddedRows)))
    return undefined;
  return chunk.segments.map(({ slot, paddedRows }) => {
    const first = staged ? 0 : slot * cache.rowsPerSlot;
    const rows = kernels.allocate('i32', [paddedRows]);
    kernels.upload(rows, bytesOf(Int32Array.from({ length: paddedRows }, (_, i) => first + i)));
    return rows;
  });
}

/** Logits of some rows over this rank's vocabulary. */
export class HeadProgram implements Disposable {
  private readonly kernels: Kernels;
  private readonly x: Tensor; // [rows, hidden]
  private readonly set: ProgramSet;

  constructor({ kernels, model, weights }: RankParts, rows: number) {
    this.kernels = kernels;
    this.x = kernels.allocate('f32', [rows, model.hiddenDim]);
    this.set = kernels.compile([
      (ops) => {
        const logits = ops.matmul(weights.head, normed(ops, this.x, weights.finalNorm, model.normEps));
        return [model.logitSoftcap === 0 ? logits : ops.softcap(logits, model.logitSoftcap)];
      },
    ]);
  }

  /** @param x [rows, hidden]  @param logits [rows, localVocab] */
  run(x: Float32Array, logits: Float32Array): void {
    this.kernels.upload(this.x, bytesOf(x));
    this.set.run(0);
    this.kernels.download(defined(this.set.outputs[0]?.[0]), logits);
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.kernels.release([this.x]);
  }
}

/** Rows of the embedding matrix, scaled where the model scales them. */
export class EmbeddingProgram implements Disposable {
  private readonly kernels: Kernels;
  private readonly ids: Tensor; // [tokens] i32
  private readonly set: ProgramSet;

  constructor({ kernels, model, weights }: RankParts, tokens: number) {
    this.kernels = kernels;
    this.ids = kernels.allocate('i32', [tokens]);
    this.set = kernels.compile([
      (ops) => {
        const rows = ops.gatherRows(weights.embedding, this.ids);
        return [model.embeddingScale === 1 ? rows : ops.scale(rows, model.embeddingScale)];
      },
    ]);
  }

  /** @param ids [tokens], local rows  @param x [tokens, hidden] */
  run(ids: Int32Array, x: Float32Array): void {
    this.kernels.upload(this.ids, bytesOf(ids));
    this.set.run(0);
    this.kernels.download(defined(this.set.outputs[0]?.[0]), x);
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.kernels.release([this.ids]);
  }
}

function present(output: Tensor | undefined): Tensor[] {
  return output === undefined ? [] : [output];
}

function defined<T>(value: T | undefined): T {
  invariant(value !== undefined, 'a program, tensor or segment that was just made is missing');
  return value;
}
