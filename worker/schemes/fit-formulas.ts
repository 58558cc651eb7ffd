/**
 * The formulas of a fit as programs: attention of one layer over one window written out, exact and cut, with its
 * probabilities. Read next: fit-programs.ts, which fills the inputs and reads the outputs.
 */
import { invariant } from '../../config/errors.ts';
import { size, type ExactTokens, type Range } from '../../config/shard-plan.ts';
import type { MlaConfig, ModelConfig } from '../../config/model-config.ts';
import {
  absorbed,
  biased,
  columnsIn,
  dim,
  latentOfTokens,
  outputOfHeads,
  queryParts,
  tokensFirst,
} from '../attention.ts';
import type { Ops, Tensor } from '../kernels/kernels.ts';
import { normed } from '../layer.ts';
import type { MlaWeights } from '../mla-weights.ts';
import type { FitNear } from './fit-near.ts';

/** Latent columns of one group, and where they stand when the columns of all groups lie side by side: r numbers in all. */
export interface FitGroup {
  readonly columns: readonly Range[];
  readonly place: Range;
}

export interface FitSizes {
  /** T: tokens of a window. */
  readonly tokens: number;
  /** The first of them, which run exactly. */
  readonly prompt: number;
  readonly exactTokens: ExactTokens;
  readonly groups: readonly FitGroup[];
  /** Columns that all groups have. */
  readonly overlap: number;
  readonly config: MlaConfig;
  readonly numHeads: number;
}

/** Attention sinks: their latents are unlike any other, and a few of them would bend a regression over all. */
const usualSinks = 4;

/** ggml multiplies float32 rows of a multiple of this length by blocks, others one by one, at half the speed. */
export const fastWidth = 16;

/** Tokens at the beginning that the keys are not fitted to. */
export function firstTokens({ exactTokens, tokens }: FitSizes): number {
  return Math.min(Math.max(exactTokens.sinks, usualSinks), Math.floor(tokens / 2));
}

/** Allocated once for a layer. */
export interface FitTensors {
  readonly x: Tensor; // [T, hidden]
  readonly positions: Tensor; // [T] i32
  readonly causal: Tensor; // [T, T]: 0 or -Infinity
  readonly exactly: Tensor; // [T, T]: 1 where the pair is scored exactly
  readonly shard: Tensor; // [T, T]: 1 where it is not
  readonly old: Tensor; // [T, T]: 1 where it is not and the other token is visible
  readonly ones: Tensor; // [1, 1, T]
  readonly oneThenZeros: Tensor; // [T, fastWidth]: rows of 1, 0, 0 ..
  readonly rotation: Tensor; // [r, r]
  readonly keys: Tensor; // [heads, r, n]
  readonly slopes: readonly Tensor[]; // of each group [heads, 1, n]
  readonly offsets: readonly Tensor[]; // of each group [heads, T, 1]
  readonly rows: Tensor; // [heads, r + 1 + v, T]: features and targets
  readonly mixed: Tensor; // [heads, T, r]
  readonly values: Tensor; // [heads, v, r]
  readonly headOutputs: Tensor; // [heads, T, v]
}

interface FitInputs {
  readonly h: Tensor; // [T, hidden] normed
  readonly latent: Tensor; // [T, r]
  readonly ropeKey: Tensor; // [T, p]
  readonly nope: Tensor; // [heads, T, n]
  readonly rope: Tensor; // [T, heads, p]
}

export class FitFormulas {
  private readonly model: ModelConfig;
  private readonly sizes: FitSizes;
  private readonly norm: Tensor; // [hidden]
  private readonly mla: MlaWeights;
  private readonly tensors: FitTensors;
  private readonly near: FitNear | undefined;

  constructor(
    model: ModelConfig,
    sizes: FitSizes,
    norm: Tensor,
    mla: MlaWeights,
    tensors: FitTensors,
    near: FitNear | undefined,
  ) {
    this.near = near;
    this.model = model;
    this.sizes = sizes;
    this.norm = norm;
    this.mla = mla;
    this.tensors = tensors;
  }

  /**
   * Absorbed queries [heads, T, r], and of each the sum of squares of its probabilities of old tokens [heads, T, 1]: what
   * an error of its scores costs, beside what the tokens' values differ by.
   */
  queries(ops: Ops): readonly Tensor[] {
    const inputs = this.inputs(ops);
    const { nope } = inputs;
    invariant(this.mla.decode.keyUp !== undefined, 'a fit of keys without a nope part');
    const scores = this.exactScores(ops, inputs);
    const p = ops.softmax(scores, this.tensors.causal, this.sizes.config.scoreScale);
    const squares = ops.matmul(this.tensors.ones, ops.multiply(ops.multiply(p, p), this.tensors.old));
    return [ops.matmul(this.mla.decode.keyUp, nope), squares];
  }

  /** Sums over the tokens behind the first ones, unrotated: of products of latent columns [r, r], of columns [1, r]. */
  latentMoments(ops: Ops): readonly Tensor[] {
    const { tokens } = this.sizes;
    const first = firstTokens(this.sizes);
    const { latent } = this.inputs(ops);
    const kept = ops.slice(latent, 0, first, tokens - first);
    const columns = ops.contiguous(ops.permute(kept, [1, 0])); // [r, tokens - first]
    const ones = ops.reshape(ops.slice(this.tensors.ones, 2, 0, tokens - first), [1, tokens - first]);
    return [ops.matmul(columns, columns), ops.matmul(columns, ones)];
  }

  /** [heads, r + 1 + v, r + 1] */
  gram(ops: Ops): readonly Tensor[] {
    const { rows } = this.tensors;
    return [ops.matmul(ops.contiguous(ops.slice(rows, 1, 0, this.sizes.config.latentDim + 1)), rows)];
  }

  private inputs(ops: Ops): FitInputs {
    const { model } = this;
    const { config } = this.sizes;
    const h = normed(ops, this.tensors.x, this.norm, model.normEps);
    const positions = { positions: this.tensors.positions };
    const { latent, ropeKey } = latentOfTokens(ops, model, config, this.mla, h, positions);
    const wholeRope = { start: 0, end: config.ropeDim };
    const { nope, rope } = queryParts(ops, model, config, this.mla, this.mla.decode, wholeRope, h, positions);
    invariant(nope !== undefined, 'a fit of keys without a nope part');
    return { h, latent: ops.contiguous(latent), ropeKey, nope, rope };
  }

  /** Outputs of all heads, uncut. [heads, T, v] */
  exactHeads(ops: Ops): readonly Tensor[] {
    const inputs = this.inputs(ops);
    const scores = this.exactScores(ops, inputs);
    const probabilities = ops.softmax(scores, this.tensors.causal, this.sizes.config.scoreScale);
    const far = this.near?.farOnly(ops, probabilities) ?? probabilities;
    const mixed = ops.matmul(columnsFirst(ops, inputs.latent), far); // [heads, T, r]
    const heads = ops.matmul(this.mla.decode.valueUp, mixed);
    const near = this.near?.outputs(ops, inputs.h, probabilities, this.tensors);
    return [near === undefined ? heads : ops.add(heads, near)];
  }

  /** [heads, T queries, T keys], not scaled */
  private exactScores(ops: Ops, { h, latent, ropeKey, nope, rope }: FitInputs): Tensor {
    invariant(this.mla.decode.keyUp !== undefined, 'a fit of keys without a nope part');
    const query = headsFirst(ops, absorbed(ops, this.mla.decode.keyUp, nope, rope));
    const scores = ops.matmul(batch(ops, ops.concat([latent, ropeKey], 1)), query);
    return this.near?.scores(ops, h, { nope, rope }, scores, this.tensors) ?? scores;
  }

  /**
   * mixtures [heads, T, r]; mass of old tokens, exact and in each group [heads, T, 1]; and what near tokens give, each
   * group its part, where there are any [heads, T, v]
   */
  mixtures(ops: Ops): readonly Tensor[] {
    const { groups, config, numHeads: H, tokens: T } = this.sizes;
    const inputs = this.inputs(ops);
    const { h, latent, ropeKey, nope, rope } = inputs;
    const exact = this.exactScores(ops, inputs);
    const turned = ops.matmul(this.tensors.rotation, latent);
    const kept = ops.multiply(exact, this.tensors.exactly);
    const oldMass = (p: Tensor): Tensor => ops.matmul(this.tensors.ones, ops.multiply(p, this.tensors.old));
    const parts = groups.map(({ columns: own, place }, group) => {
      const keyUp = ops.contiguous(ops.slice(this.tensors.keys, 1, place.start, size(place)));
      const columns = ops.contiguous(columnsIn(ops, turned, own)); // [T, columns]
      const local = headsFirst(ops, absorbed(ops, keyUp, nope, rope)); // [heads, T, columns + p]
      const offset = ops.add(ops.matmul(at(this.tensors.slopes, group), nope), at(this.tensors.offsets, group)); // [heads, T, 1]
      const padding = paddingOf(dim(local, 2) + 1);
      const rest = padding > 0 ? [ops.slice(local, 2, 0, padding)] : []; // times zeros
      const query = ops.concat([local, ops.reshape(offset, [H, T, 1]), ...rest], 2);
      const constants = ops.slice(this.tensors.oneThenZeros, 1, 0, 1 + padding);
      const keys = batch(ops, ops.concat([columns, ropeKey, constants], 1));
      const scores = ops.add(kept, ops.multiply(ops.matmul(keys, query), this.tensors.shard));
      const p = ops.softmax(scores, this.tensors.causal, config.scoreScale);
      const far = this.near?.farOnly(ops, p) ?? p;
      const near = this.near?.outputs(ops, h, p, this.tensors);
      return { mixed: ops.matmul(columnsFirst(ops, columns), far), mass: oldMass(p), near };
    });
    const exactMass = oldMass(ops.softmax(exact, this.tensors.causal, config.scoreScale));
    return [
      ops.concat(
        parts.map(({ mixed }) => mixed),
        2,
      ),
      exactMass,
      ...parts.map(({ mass }) => mass),
      ...sumOfParts(
        ops,
        parts.flatMap(({ near }) => (near === undefined ? [] : [ops.scale(near, 1 / parts.length)])),
      ),
    ];
  }

  /** Deltas [T, hidden] of headOutputs; of mixed by the refitted W_UV, with headOutputs added where tokens are near. */
  heads(ops: Ops): readonly Tensor[] {
    const delta = (heads: Tensor): Tensor =>
      biased(ops, outputOfHeads(ops, this.mla.decode, tokensFirst(ops, heads)), this.mla.outputBias);
    const { headOutputs, values, mixed } = this.tensors;
    const far = ops.matmul(values, mixed);
    return [delta(headOutputs), delta(this.near === undefined ? far : ops.add(far, headOutputs))];
  }
}

/** None of none. */
function sumOfParts(ops: Ops, parts: readonly Tensor[]): Tensor[] {
  const [first, ...others] = parts;
  return first === undefined ? [] : [others.reduce((sum, part) => ops.add(sum, part), first)];
}

/** Numbers that make a sum of products as long as the backend multiplies fast; none where it is short anyway. */
function paddingOf(length: number): number {
  return length < fastWidth ? 0 : (fastWidth - (length % fastWidth)) % fastWidth;
}

/** [T, columns] -> [1, columns, T] */
function columnsFirst(ops: Ops, x: Tensor): Tensor {
  return batch(ops, ops.contiguous(ops.permute(x, [1, 0])));
}

/** [T, heads, columns] -> [heads, T, columns] */
function headsFirst(ops: Ops, x: Tensor): Tensor {
  return ops.contiguous(ops.permute(x, [1, 0, 2]));
}

/** [a, b] -> [1, a, b] */
function batch(ops: Ops, x: Tensor): Tensor {
  return ops.reshape(x, [1, ...x.shape]);
}

export function at(tensors: readonly Tensor[], index: number): Tensor {
  const tensor = tensors[index];
  invariant(tensor !== undefined, `tensor ${index} of ${tensors.length}`);
  return tensor;
}
