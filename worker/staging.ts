/**
 * Exact prefill that goes on from tokens already in the cache: of those each rank keeps only a shard, so their whole
 * latents are gathered from one rank of every latent group, a block of rows at a time, into the staging tensor of the
 * layer at hand; columns that no rank keeps (an overlap of latent groups) stay zero, their mean. Cost per layer: one all-gather of start * (r + p per group) numbers; nothing when start is 0.
 */
import { invariant } from '../config/errors.ts';
import { latentWidth, size, type RankPlan, type ShardPlan } from '../config/shard-plan.ts';
import type { ProcessGroup } from '../collective/group.ts';
import type { Kernels, Ops, ProgramSet, Tensor } from './kernels/kernels.ts';
import { ProgramCache } from './program-cache.ts';
import { bytesOf, type RankParts } from './rank-parts.ts';

/** Rows gathered at once. */
const blockRows = 256;

export class LatentStager implements Disposable {
  private readonly parts: RankParts;
  private readonly plan: ShardPlan;
  private readonly rank: RankPlan;
  private readonly group: ProcessGroup;
  private readonly programs = new ProgramCache<BlockPrograms>(4);

  constructor(parts: RankParts, plan: ShardPlan, rank: RankPlan, group: ProcessGroup) {
    this.parts = parts;
    this.plan = plan;
    this.rank = rank;
    this.group = group;
  }

  /** Fills staging rows 0 .. length with the whole latents of the first `length` tokens of a slot. */
  async stage(layer: number, slot: number, length: number): Promise<void> {
    for (let start = 0; start < length; start += blockRows)
      await this.stageBlock(layer, slot, start, Math.min(blockRows, length - start));
  }

  private async stageBlock(layer: number, slot: number, start: number, rows: number): Promise<void> {
    const { model, cache } = this.parts;
    const attention = model.attention;
    invariant(attention.kind === 'mla', 'staging is for latent caches');
    const { latentDim, ropeDim } = attention;
    const programs = this.programs.get(`${rows}`, () => new BlockPrograms(this.parts, rows));
    const width = latentWidth(this.rank) + size(this.rank.ropeKey);
    const own = new Float32Array(rows * width); // [rows, latentShard + ropeShard]
    programs.read(layer, slot * cache.rowsPerSlot + start, own);

    const widths = this.plan.ranks.map((rank) => this.gatheredWidth(rank, ropeDim));
    const part = leadingColumns(own, rows, width, widths[this.rank.rank] ?? 0);
    const gathered = new Float32Array(rows * widths.reduce((sum, columns) => sum + columns, 0));
    await this.group.allGather(
      part,
      widths.map((columns) => rows * columns),
      gathered,
      `layer ${layer}, latents of ${rows} earlier tokens`,
    );

    const wholeWidth = latentDim + ropeDim;
    const whole = new Float32Array(rows * wholeWidth); // [rows, r + p]
    /** Columns `from` .. of source [rows, sourceWidth] to columns `to` .. of whole. */
    const place = (source: Float32Array, sourceWidth: number, from: number, columns: number, to: number): void => {
      for (let row = 0; row < rows; row++) {
        const first = row * sourceWidth + from;
        whole.set(source.subarray(first, first + columns), row * wholeWidth + to);
      }
    };
    let offset = 0;
    this.plan.ranks.forEach((rank, i) => {
      const columns = widths[i] ?? 0;
      if (columns === 0) return;
      const source = gathered.subarray(offset, offset + rows * columns);
      const { sharedLatent, latent, ropeKey } = rank;
      const kept = latentWidth(rank);
      place(source, columns, 0, size(sharedLatent), sharedLatent.start);
      place(source, columns, size(sharedLatent), size(latent), latent.start);
      place(source, columns, kept, columns - kept, latentDim + ropeKey.start);
      offset += rows * columns;
    });
    if (!this.ropeIsCut(ropeDim)) place(own, width, width - ropeDim, ropeDim, latentDim);
    programs.write(start, whole);
  }

  /** Columns that a rank sends: those of its cache that the first rank of every latent group does not share. */
  private gatheredWidth(rank: RankPlan, ropeDim: number): number {
    if (!this.firstOfGroup(rank)) return 0;
    return latentWidth(rank) + (this.ropeIsCut(ropeDim) ? size(rank.ropeKey) : 0);
  }

  private ropeIsCut(ropeDim: number): boolean {
    return this.plan.ranks.some((rank) => size(rank.ropeKey) < ropeDim);
  }

  private firstOfGroup(rank: RankPlan): boolean {
    return rank.rank % (this.plan.worldSize / this.plan.latentGroups) === 0;
  }

  [Symbol.dispose](): void {
    this.programs[Symbol.dispose]();
  }
}

class BlockPrograms implements Disposable {
  private readonly kernels: Kernels;
  private readonly indices: Tensor; // [rows] i32
  private readonly whole: Tensor; // [rows, r + p]
  private readonly set: ProgramSet;
  private readonly rows: number;
  private readonly writeIndex: number;

  constructor({ kernels, cache }: RankParts, rows: number) {
    this.kernels = kernels;
    this.rows = rows;
    this.indices = kernels.allocate('i32', [rows]);
    const staging = cache.staging;
    invariant(staging !== undefined, 'a cache without staging was asked to stage');
    const whole = kernels.allocate('f32', [rows, staging.shape[1] ?? 0]);
    this.whole = whole;
    this.writeIndex = cache.layers.length;
    this.set = kernels.compile([
      ...cache.layers.map((layer) => {
        invariant(layer.kind === 'latent', 'staging is for latent caches');
        return (ops: Ops) => [ops.gatherRows(layer.rows, this.indices)];
      }),
      (ops) => {
        ops.scatterRows(staging, whole, this.indices);
        return [];
      },
    ]);
  }

  /** @param out [rows, latentShard + ropeShard] */
  read(layer: number, firstRow: number, out: Float32Array): void {
    this.load(firstRow);
    this.set.run(layer);
    const output = this.set.outputs[layer]?.[0];
    invariant(output !== undefined, `no program reads layer ${layer}`);
    this.kernels.download(output, out);
  }

  /** @param whole [rows, r + p] */
  write(firstRow: number, whole: Float32Array): void {
    this.load(firstRow);
    this.kernels.upload(this.whole, bytesOf(whole));
    this.set.run(this.writeIndex);
  }

  private load(firstRow: number): void {
    this.kernels.upload(this.indices, bytesOf(Int32Array.from({ length: this.rows }, (_, i) => firstRow + i)));
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.kernels.release([this.indices, this.whole]);
  }
}

/** @param values [rows, width]  @returns [rows, columns] */
function leadingColumns(values: Float32Array, rows: number, width: number, columns: number): Float32Array {
  const out = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) out.set(values.subarray(row * width, row * width + columns), row * columns);
  return out;
}
