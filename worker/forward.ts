/**
 * One forward pass of this rank. Layers outside, chunks inside: a layer sees the whole step before the next begins, so
 * the whole latents that exact prefill needs exist for one layer at a time. Each `await` is a collective. The residual
 * stream is replicated: after every sum all ranks hold the same bits.
 */
import { invariant } from '../config/errors.ts';
import { routes } from '../config/model-config.ts';
import { size, type RankPlan, type ShardPlan } from '../config/shard-plan.ts';
import type { ProcessGroup } from '../collective/group.ts';
import type { Step } from '../collective/messages.ts';
import type { Payload } from '../collective/payload.ts';
import { chunksOf, type Chunk } from './chunks.ts';
import type { MomentAccumulator } from './moments.ts';
import { normRows } from './post-norm.ts';
import { ProgramCache } from './program-cache.ts';
import { ChunkPrograms, EmbeddingProgram, HeadProgram, type ChunkForm } from './programs.ts';
import type { RankParts } from './rank-parts.ts';
import { RoutedExperts } from './routed-experts.ts';
import { scoreRows } from './score.ts';
import { joinsSequences } from './schemes/create-exchange.ts';
import type { RankSeat } from './schemes/exchange.ts';
import { LatentStager } from './staging.ts';

/** Rows of logits computed at once: 32 rows of a 150,000-word vocabulary are 19 MB. */
const headRows = 32;

/** A chunk on its way through the layers. */
interface Piece {
  readonly chunk: Chunk;
  /** Of its programs. */
  readonly key: string;
  readonly make: () => ChunkPrograms;
  readonly x: Float32Array; // [chunk tokens, hidden], its rows of the residual stream
  readonly delta: Float32Array; // [chunk tokens, hidden], scratch of all chunks
}

export class Forward implements Disposable {
  private readonly parts: RankParts;
  private readonly seat: RankSeat;
  private readonly rank: RankPlan;
  private readonly group: ProcessGroup;
  private readonly payload: Payload;
  private readonly stager: LatentStager;
  private readonly experts: RoutedExperts;
  private readonly exactPrefill: boolean;
  private readonly chunkPrograms = new ProgramCache<ChunkPrograms>(12);
  private readonly headPrograms = new ProgramCache<HeadProgram>(4);
  private readonly embeddingPrograms = new ProgramCache<EmbeddingProgram>(4);
  /** Decode takes sequences together where nothing but the cache's rows and the mask is a sequence's own. */
  private readonly joinsSequences: boolean;
  private readonly labels: readonly { exchange: string; attention: string; feedForward: string }[];
  /** Memory of the largest step's logits: megabytes per step would keep the garbage collector busy. [sequences, localVocab] */
  private latestLogits: Float32Array = new Float32Array(0);
  /** Set while calibration moments are being collected. */
  moments: MomentAccumulator | undefined;

  /** @param payload what the sums behind attention and feed-forward travel as between hosts */
  constructor(parts: RankParts, plan: ShardPlan, rank: RankPlan, group: ProcessGroup, payload: Payload) {
    this.parts = parts;
    this.seat = { plan, rank, group };
    this.rank = rank;
    this.group = group;
    this.payload = payload;
    this.stager = new LatentStager(parts, plan, rank, group);
    this.experts = new RoutedExperts(parts, rank);
    this.exactPrefill = parts.cache.staging !== undefined;
    this.joinsSequences = joinsSequences(parts, plan);
    this.labels = parts.weights.layers.map((_, layer) => ({
      exchange: `layer ${layer}, inside attention`,
      attention: `layer ${layer}, attention`,
      feedForward: `layer ${layer}, feed-forward`,
    }));
  }

  /** @returns the payload that `step.want` describes; the next step may overwrite it */
  async run(step: Step): Promise<Float32Array | undefined> {
    const prefill = step.phase === 'prefill';
    const staged = this.exactPrefill && prefill;
    invariant(!staged || step.sequences.length === 1, `step ${step.id}: exact prefill takes one sequence at a time`);
    this.parts.cache.recent?.begin(step.sequences, step.phase);
    const hidden = this.parts.model.hiddenDim;
    const form: ChunkForm = { staged, prefill };
    const chunks = chunksOf(step, this.parts.cache.layout, this.joinsSequences && !prefill);
    const tokens = chunks.reduce((sum, chunk) => sum + chunk.tokens.length, 0);
    const x = new Float32Array(tokens * hidden); // [tokens, hidden]
    const delta = new Float32Array(Math.max(0, ...chunks.map((chunk) => chunk.tokens.length)) * hidden);
    const pieces = chunks.map((chunk) => this.pieceOf(chunk, form, x, delta));
    for (const piece of pieces) await this.embed(piece.chunk, piece.x);
    for (let layer = 0; layer < this.labels.length; layer++) {
      if (staged) await this.stageEarlier(step, layer);
      for (const piece of pieces) await this.layer(layer, piece);
    }
    return this.answer(step, x);
  }

  /** What every layer needs of a chunk, made once per step. */
  private pieceOf(chunk: Chunk, form: ChunkForm, x: Float32Array, delta: Float32Array): Piece {
    const hidden = this.parts.model.hiddenDim;
    const { length } = chunk.tokens;
    return {
      chunk,
      key: `${chunk.signature}${form.staged ? ' staged' : ''}${form.prefill ? ' prefill' : ''}`,
      make: () => new ChunkPrograms(this.parts, this.seat, chunk, form),
      x: x.subarray(chunk.firstRow * hidden, (chunk.firstRow + length) * hidden),
      delta: delta.subarray(0, length * hidden),
    };
  }

  private async layer(layer: number, { chunk, key, make, x, delta }: Piece): Promise<void> {
    const labels = this.labels[layer];
    invariant(labels !== undefined, 'more layers than labels');
    const programs = this.chunkPrograms.get(key, make);
    programs.load(chunk);
    this.moments?.add(layer, x);
    await programs.attention(layer, x, delta, labels.exchange);
    await this.group.allReduceSum(delta, labels.attention, this.payload);
    this.addDelta(layer, 'attention', x, delta);
    if (routes(this.parts.model, layer)) this.experts.run(layer, x, delta);
    else programs.feedForward(layer, x, delta);
    await this.group.allReduceSum(delta, labels.feedForward, this.payload);
    this.addDelta(layer, 'feedForward', x, delta);
  }

  /** @param delta summed over ranks; normed first where the model does so  @param x updated */
  private addDelta(layer: number, part: 'attention' | 'feedForward', x: Float32Array, delta: Float32Array): void {
    const norms = this.parts.weights.layers[layer]?.postNorms;
    if (norms !== undefined) normRows(delta, norms[part], this.parts.model.normEps);
    addInPlace(x, delta);
  }

  /** Each rank looks up its part of the vocabulary; the others add zeros. @param x [chunk tokens, hidden] overwritten */
  private async embed(chunk: Chunk, x: Float32Array): Promise<void> {
    const { start, end } = this.rank.vocab;
    const hidden = this.parts.model.hiddenDim;
    const isLocal = (token: number): boolean => token >= start && token < end;
    if (size(this.rank.vocab) > 0) {
      const ids = Int32Array.from(chunk.tokens, (token) => (isLocal(token) ? token - start : 0));
      this.embeddingPrograms.get(`${ids.length}`, () => new EmbeddingProgram(this.parts, ids.length)).run(ids, x);
      chunk.tokens.forEach((token, t) => {
        if (!isLocal(token)) x.fill(0, t * hidden, (t + 1) * hidden);
      });
    }
    await this.group.allReduceSum(x, 'embedding');
  }

  private async stageEarlier(step: Step, layer: number): Promise<void> {
    for (const { slot, start } of step.sequences) await this.stager.stage(layer, slot, start);
  }

  private answer(step: Step, x: Float32Array): Float32Array | undefined {
    const hidden = this.parts.model.hiddenDim;
    switch (step.want.kind) {
      case 'none':
        return undefined;
      case 'all':
        return this.logits(x, new Float32Array(0));
      case 'last': {
        const last = new Float32Array(step.sequences.length * hidden);
        let end = 0;
        step.sequences.forEach((sequence, i) => {
          end += sequence.tokens.length;
          last.set(x.subarray((end - 1) * hidden, end * hidden), i * hidden);
        });
        return this.logits(last, this.latestLogits);
      }
      case 'score':
        return scoreRows(x, hidden, step.want.targets, this.rank.vocab, headRows, (rows) =>
          this.logits(rows, this.latestLogits),
        );
    }
  }

  /** @param x [rows, hidden]  @param memory used for the result where it is large enough  @returns [rows, localVocab] */
  private logits(x: Float32Array, memory: Float32Array): Float32Array {
    const hidden = this.parts.model.hiddenDim;
    const vocab = size(this.rank.vocab);
    const rows = x.length / hidden;
    const numbers = rows * vocab;
    const logits = numbers <= memory.length ? memory.subarray(0, numbers) : new Float32Array(numbers);
    if (memory === this.latestLogits && numbers > memory.length) this.latestLogits = logits;
    if (vocab === 0) return logits;
    for (let row = 0; row < rows; row += headRows) {
      const count = Math.min(headRows, rows - row);
      const program = this.headPrograms.get(`${count}`, () => new HeadProgram(this.parts, count));
      program.run(
        x.subarray(row * hidden, (row + count) * hidden),
        logits.subarray(row * vocab, (row + count) * vocab),
      );
    }
    return logits;
  }

  [Symbol.dispose](): void {
    this.chunkPrograms[Symbol.dispose]();
    this.headPrograms[Symbol.dispose]();
    this.embeddingPrograms[Symbol.dispose]();
    this.stager[Symbol.dispose]();
    this.experts[Symbol.dispose]();
  }
}

function addInPlace(x: Float32Array, delta: Float32Array): void {
  for (let i = 0; i < x.length; i++) x[i] = (x[i] ?? 0) + (delta[i] ?? 0);
}
