/** A window's queries in blocks, each with the mask of the keys up to its end. Read next: pair-program.ts. */
import { cut, size, type Range } from '../../config/shard-plan.ts';
import type { Kernels, Tensor } from '../kernels/kernels.ts';
import { bytesOf } from '../rank-parts.ts';
import { wholeMask } from './window-tables.ts';

/** Queries of one block see no key behind it: with 16 blocks, 17 in 32 of all pairs are computed. */
const blocksOfWindow = 16;

export interface QueryBlock {
  readonly queries: Range; // m; keys t are those before its end
  /** 0 where a query may see a key, -Infinity elsewhere. [m, t] */
  readonly mask: Tensor;
}

export class QueryBlocks implements Disposable {
  readonly blocks: readonly QueryBlock[];
  private readonly kernels: Kernels;
  private readonly tokens: number;
  private window = 0;

  constructor(kernels: Kernels, tokens: number) {
    this.kernels = kernels;
    this.tokens = tokens;
    const ranges = cut(tokens, new Array<number>(Math.min(blocksOfWindow, tokens)).fill(1), 1);
    this.blocks = ranges.map((queries) => ({ queries, mask: kernels.allocate('f32', [size(queries), queries.end]) }));
    this.upload();
  }

  /** @param window positions that a query sees, its own included; 0: all before it */
  setWindow(window: number): void {
    if (window === this.window) return;
    this.window = window;
    this.upload();
  }

  [Symbol.dispose](): void {
    this.kernels.release(this.blocks.map(({ mask }) => mask));
  }

  private upload(): void {
    const { tokens } = this;
    const whole = wholeMask(tokens, this.window);
    for (const { queries, mask } of this.blocks) {
      const { start, end } = queries;
      const own = new Float32Array((end - start) * end);
      for (let m = start; m < end; m++) own.set(whole.subarray(m * tokens, m * tokens + end), (m - start) * end);
      this.kernels.upload(mask, bytesOf(own));
    }
  }
}
