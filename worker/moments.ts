/**
 * Calibration: sums over tokens of h h^T and h for every layer, where h is the normed layer input with its gain (what
 * W_Q, W_K and W_V read). From them follow the second moments of q, k, v and of any projection of h, which is all that
 * TransMLA needs (arXiv 2502.07864, section 4). Each rank accumulates its share of the rows: [rows, hidden] of
 * [hidden, hidden].
 */
import { invariant } from '../config/errors.ts';
import { cut, size, type Range } from '../config/shard-plan.ts';
import type { Kernels, ProgramSet, Tensor } from './kernels/kernels.ts';
import { normed } from './layer.ts';
import { ProgramCache } from './program-cache.ts';
import { bytesOf, type RankParts } from './rank-parts.ts';

/** The rows of every second moment that a rank accumulates. */
export function momentRows(hiddenDim: number, worldSize: number, rank: number): Range {
  return cut(hiddenDim, new Array<number>(worldSize).fill(1), 1)[rank] ?? { start: 0, end: 0 };
}

export class MomentAccumulator implements Disposable {
  private readonly parts: RankParts;
  private readonly rows: Range;
  private readonly sums: readonly { outer: Tensor; first: Tensor }[]; // per layer [rows, hidden], [1, hidden]
  private readonly programs = new ProgramCache<MomentPrograms>(4);

  constructor(parts: RankParts, worldSize: number, rank: number) {
    this.parts = parts;
    const hidden = parts.model.hiddenDim;
    this.rows = momentRows(hidden, worldSize, rank);
    this.sums = parts.weights.layers.map(() => ({
      outer: parts.kernels.allocate('f32', [size(this.rows), hidden]),
      first: parts.kernels.allocate('f32', [1, hidden]),
    }));
  }

  /** @param x [tokens, hidden], the residual stream that the layer reads */
  add(layer: number, x: Float32Array): void {
    const tokens = x.length / this.parts.model.hiddenDim;
    this.programs.get(`${tokens}`, () => new MomentPrograms(this.parts, this.sums, this.rows, tokens)).run(layer, x);
  }

  /** @returns [rows, hidden] followed by [hidden] */
  read(layer: number): Float32Array {
    const sums = this.sums[layer];
    invariant(sums !== undefined, `moments of layer ${layer}: the model has ${this.sums.length} layers`);
    const hidden = this.parts.model.hiddenDim;
    const values = new Float32Array((size(this.rows) + 1) * hidden);
    this.parts.kernels.download(sums.outer, values.subarray(0, size(this.rows) * hidden));
    this.parts.kernels.download(sums.first, values.subarray(size(this.rows) * hidden));
    return values;
  }

  [Symbol.dispose](): void {
    this.programs[Symbol.dispose]();
    this.parts.kernels.release(this.sums.flatMap((sums) => [sums.outer, sums.first]));
  }
}

class MomentPrograms implements Disposable {
  private readonly kernels: Kernels;
  private readonly x: Tensor; // [tokens, hidden]
  private readonly ones: Tensor; // [1, tokens]
  private readonly set: ProgramSet;

  constructor(
    { kernels, model, weights }: RankParts,
    sums: readonly { outer: Tensor; first: Tensor }[],
    rows: Range,
    tokens: number,
  ) {
    this.kernels = kernels;
    this.x = kernels.allocate('f32', [tokens, model.hiddenDim]);
    this.ones = kernels.allocate('f32', [1, tokens]);
    kernels.upload(this.ones, bytesOf(new Float32Array(tokens).fill(1)));
    this.set = kernels.compile(
      sums.map(({ outer, first }, layer) => (ops) => {
        const gain = weights.layers[layer]?.attentionNorm;
        invariant(gain !== undefined, `no norm in layer ${layer}`);
        const h = ops.contiguous(ops.permute(normed(ops, this.x, gain, model.normEps), [1, 0])); // [hidden, tokens]
        const own = ops.contiguous(ops.slice(h, 0, rows.start, size(rows))); // [rows, tokens]
        ops.copyTo(outer, ops.add(outer, ops.matmul(h, own)));
        ops.copyTo(first, ops.add(first, ops.matmul(h, this.ones)));
        return [];
      }),
    );
  }

  run(layer: number, x: Float32Array): void {
    this.kernels.upload(this.x, bytesOf(x));
    this.set.run(layer);
  }

  [Symbol.dispose](): void {
    this.set[Symbol.dispose]();
    this.kernels.release([this.x, this.ones]);
  }
}
