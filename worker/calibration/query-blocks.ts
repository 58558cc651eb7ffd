/** A window's queries in blocks, each with the mask of the keys up to its end. Read next: pair-program.ts. */
import { cut, size, type ExactTokens, type Range } from '../../config/shard-plan.ts';
import type { Kernels, Tensor } from '../kernels/kernels.ts';
import { bytesOf } from '../rank-parts.ts';
import { isNear, isSeen } from './window-tables.ts';

/** Queries of one block see no key behind it: with 16 blocks, 17 in 32 of all pairs are computed. */
const blocksOfWindow = 16;

const noTokens: ExactTokens = { sinks: 0, window: 0 };

export interface QueryBlock {
  readonly queries: Range; // m; keys t are those before its end
  /** 0 where a query may see a key, -Infinity elsewhere. [m, t], and behind these the columns of near tokens */
  readonly mask: Tensor;
  /** Keys that some query of the block sees as near ones: the first `sinks`, then the window. Both empty without near tokens. */
  readonly near: { readonly sinks: number; readonly window: Range };
}

export class QueryBlocks implements Disposable {
  readonly blocks: readonly QueryBlock[];
  private readonly kernels: Kernels;
  private readonly near: ExactTokens;
  private window = 0;

  /** @param near tokens that have columns of their own behind the others, which do not show them */
  constructor(kernels: Kernels, tokens: number, near: ExactTokens = noTokens) {
    this.kernels = kernels;
    this.near = near;
    const ranges = cut(tokens, new Array<number>(Math.min(blocksOfWindow, tokens)).fill(1), 1);
    this.blocks = ranges.map((queries) => {
      const start = Math.max(0, queries.start - near.window + 1);
      const window = near.window === 0 ? { start: 0, end: 0 } : { start, end: queries.end };
      const sinks = Math.min(near.sinks, window.start);
      const columns = queries.end + sinks + size(window);
      return { queries, mask: kernels.allocate('f32', [size(queries), columns]), near: { sinks, window } };
    });
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
    for (const block of this.blocks) this.kernels.upload(block.mask, bytesOf(this.maskOf(block)));
  }

  private maskOf({ queries: { start, end }, near }: QueryBlock): Float32Array {
    const { sinks, window } = near;
    const columns = end + sinks + size(window);
    const mask = new Float32Array((end - start) * columns).fill(-Infinity);
    for (let m = start; m < end; m++) {
      const show = (t: number, column: number, asNear: boolean): void => {
        if (isSeen(m, t, this.window) && isNear(m, t, this.near) === asNear) mask[(m - start) * columns + column] = 0;
      };
      for (let t = 0; t <= m; t++) show(t, t, false);
      for (let t = 0; t < sinks; t++) show(t, end + t, true);
      for (let t = window.start; t < window.end; t++) show(t, end + sinks + t - window.start, true);
    }
    return mask;
  }
}
