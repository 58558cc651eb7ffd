/**
 * A copy of every slot's rows of near tokens as they were behind its prompt. Decoding overwrites the rows, and a prompt that
 * goes on from an earlier one needs those that were there before. Read next: recent-tokens.ts, coordinator/slot-memory.ts.
 */
import type { Kernels, Ops, ProgramSet, Tensor } from '../kernels/kernels.ts';

export class KeptRows {
  /** Of each layer. [slots * rowsPerSlot, width] f32 */
  readonly layers: readonly Tensor[];
  private readonly kernels: Kernels;
  private readonly rows: readonly Tensor[];
  private readonly rowsPerSlot: number;
  /** For each slot that was needed: saves, restores. */
  private readonly programs = new Map<number, ProgramSet>();

  /** @param rows of each layer, what is copied [at least slots * rowsPerSlot, width] */
  constructor(kernels: Kernels, rows: readonly Tensor[], slots: number, rowsPerSlot: number, width: number) {
    this.kernels = kernels;
    this.rows = rows;
    this.rowsPerSlot = rowsPerSlot;
    this.layers = rows.map(() => kernels.allocate('f32', [slots * rowsPerSlot, width]));
  }

  save(slot: number): void {
    this.programsOf(slot).run(0);
  }

  restore(slot: number): void {
    this.programsOf(slot).run(1);
  }

  private programsOf(slot: number): ProgramSet {
    const known = this.programs.get(slot);
    if (known !== undefined) return known;
    const part = (ops: Ops, x: Tensor): Tensor => ops.slice(x, 0, slot * this.rowsPerSlot, this.rowsPerSlot);
    const copy = (ops: Ops, from: readonly Tensor[], to: readonly Tensor[]): Tensor[] => {
      from.forEach((x, layer) => {
        const target = to[layer];
        if (target !== undefined) ops.copyTo(part(ops, target), part(ops, x));
      });
      return [];
    };
    const made = this.kernels.compile([
      (ops) => copy(ops, this.rows, this.layers),
      (ops) => copy(ops, this.layers, this.rows),
    ]);
    this.programs.set(slot, made);
    return made;
  }
}
