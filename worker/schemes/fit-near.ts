/**
 * Near tokens (near-heads.ts) in a fit: scored and mixed by the heads' own keys and values, whole on every rank, so that
 * the cut only concerns the others. Read next: fit-formulas.ts.
 */
import type { MlaConfig } from '../../config/model-config.ts';
import type { AttentionInputs } from '../attention-inputs.ts';
import { dim, type Query } from '../attention.ts';
import type { Kernels, Ops, Tensor } from '../kernels/kernels.ts';
import type { NearWeights } from '../near-weights.ts';
import { bytesOf } from '../rank-parts.ts';
import type { FitSizes } from './fit-formulas.ts';
import { nearQueryOf, nearRows } from './near-heads.ts';

export class FitNear implements Disposable {
  private readonly kernels: Kernels;
  private readonly config: MlaConfig;
  private readonly near: NearWeights;
  private readonly pairs: Tensor; // [T, T]: 1 where the key is near to the query
  private readonly far: Tensor; // [T, T]: 1 where it is not
  private readonly ones: Tensor; // [1, T, 1]

  constructor(kernels: Kernels, { config, tokens: T, exactTokens }: FitSizes, near: NearWeights) {
    this.kernels = kernels;
    this.config = config;
    this.near = near;
    this.pairs = kernels.allocate('f32', [T, T]);
    this.far = kernels.allocate('f32', [T, T]);
    this.ones = kernels.allocate('f32', [1, T, 1]);
    kernels.upload(this.ones, bytesOf(new Float32Array(T).fill(1)));
    const { sinks, window } = exactTokens;
    const isNear = Float32Array.from({ length: T * T }, (_, i) => {
      const [t, other] = [Math.floor(i / T), i % T];
      return other < sinks || other > t - window ? 1 : 0;
    });
    kernels.upload(this.pairs, bytesOf(isNear));
    kernels.upload(this.far, bytesOf(isNear.map((value) => 1 - value)));
  }

  /** Scores of near pairs by the heads' keys, of the others as given. @param h [T, hidden] normed  @param scores [heads, T, T] */
  scores(ops: Ops, h: Tensor, query: Query, scores: Tensor, inputs: Pick<AttentionInputs, 'positions'>): Tensor {
    const queries = nearQueryOf(ops, this.config, this.near, query, inputs); // [heads, T, d]
    const near = ops.matmul(this.heads(ops, h, inputs).keys, queries);
    const { slope } = this.near;
    if (slope === undefined || query.nope === undefined)
      return ops.add(ops.multiply(scores, this.far), ops.multiply(near, this.pairs));
    // What the others' scores lack is taken off these.
    const shift = ops.matmul(this.ones, ops.matmul(slope, query.nope)); // [heads, T, T], rows of one number
    return ops.add(ops.multiply(scores, this.far), ops.multiply(ops.add(near, ops.scale(shift, -1)), this.pairs));
  }

  /** What near tokens give the heads under these probabilities [heads, T, T]. [heads, T, v] */
  outputs(ops: Ops, h: Tensor, probabilities: Tensor, inputs: Pick<AttentionInputs, 'positions'>): Tensor {
    const { values } = this.heads(ops, h, inputs);
    return ops.matmul(ops.contiguous(ops.permute(values, [0, 2, 1])), ops.multiply(probabilities, this.pairs));
  }

  /** The probabilities of far pairs alone. @param probabilities [heads, T, T] */
  farOnly(ops: Ops, probabilities: Tensor): Tensor {
    return ops.multiply(probabilities, this.far);
  }

  [Symbol.dispose](): void {
    this.kernels.release([this.pairs, this.far, this.ones]);
  }

  /** [G, T, d] each */
  private heads(ops: Ops, h: Tensor, inputs: Pick<AttentionInputs, 'positions'>): { keys: Tensor; values: Tensor } {
    const rows = nearRows(ops, this.config, this.near, h, inputs); // [T, 2 G d]
    const headDim = this.config.nopeDim;
    const count = dim(rows, 1) / headDim / 2;
    const perHead = ops.permute(ops.reshape(rows, [dim(rows, 0), 2 * count, headDim]), [1, 0, 2]);
    const all = ops.contiguous(perHead); // [2 G, T, d]
    return {
      keys: ops.contiguous(ops.slice(all, 0, 0, count)),
      values: ops.contiguous(ops.slice(all, 0, count, count)),
    };
  }
}
