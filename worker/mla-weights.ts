/**
 * The latent projections of one MLA layer, ready for this rank: norm gain folded in, latent rotated where the user asked
 * for it, columns of the shard cut out (spec symbols: c' = U c, W_UK' = W_UK diag(gamma) U^T, W_UV' likewise,
 * W_DKV' = U W_DKV; exact as long as nothing is cut). TPLA, arXiv 2508.15881, section 4.
 */
import { invariant } from '../config/errors.ts';
import type { MlaConfig, ModelConfig } from '../config/model-config.ts';
import { cachedLatent, size, times, type Range, type RankPlan, type ShardPlan } from '../config/shard-plan.ts';
import type { Checkpoint, LayerRole } from '../model/checkpoint.ts';
import type { LayerFit } from '../model/tpla/decode-fit.ts';
import { shardNormFactor } from '../model/tpla/rotation.ts';
import type { Tensor } from './kernels/kernels.ts';
import { columnsOf, times2d, timesTransposed } from './matrix-products.ts';
import { loadNear, type NearWeights } from './near-weights.ts';
import { corrected } from './schemes/corrected-projection.ts';
import { type WeightUploader } from './weight-uploader.ts';

export interface MlaWeights {
  readonly kind: 'mla';
  /** Low-rank query (W_DQ with its norm's gain), replicated. */
  readonly queryDown:
    | {
        readonly matrix: Tensor; // [queryLoraDim, hidden]
        readonly bias: Tensor | undefined; // [queryLoraDim]
        readonly gain: Tensor; // [queryLoraDim]
      }
    | undefined;
  readonly queryBias: Tensor | undefined; // [localHeads * (n + p)]
  readonly latentDown: Tensor; // W_DKV, W_KR: [r + p, hidden], replicated: every rank computes the whole latent
  readonly latentDownBias: Tensor | undefined; // [r + p]
  readonly latentShard: readonly Range[]; // columns that the cache keeps, in its order
  readonly ropeShard: Range; // columns of the rotary key that the cache keeps
  /**
   * Set where decode norms the shard alone (TPLA, section 4.1): sqrt(s r / w), s the share of the latent's energy that lies
   * in the shard's w columns, makes its root mean square stand for that of the whole.
   */
  readonly shardNormFactor: number | undefined;
  readonly decode: MlaProjection;
  /** The same object as `decode` when the cache holds the whole latent; undefined: this rank has no heads in prefill. */
  readonly prefill: MlaProjection | undefined;
  readonly outputBias: Tensor | undefined; // [hidden], rank 0 only
  /** Added in decode beside outputBias, rank 0 only: the constant part of a fit. [hidden] */
  readonly decodeBias: Tensor | undefined;
  readonly frequencies: Tensor; // [p / 2]
  /** Of near tokens; undefined: the model has none. */
  readonly near: NearWeights | undefined;
}

/** Maps between head space and latent columns, for some of the local heads. */
export interface MlaProjection {
  /** Counted from the first local head. */
  readonly heads: Range;
  /**
   * Parts for consecutive heads. Cut where the heads of prefill begin and end, so that both phases share one copy: no
   * part of a matrix can be multiplied by itself once a backend has repacked it. [part heads * (n + p), hidden or queryLoraDim]
   */
  readonly query: readonly Tensor[];
  /** Parts likewise, of `heads`; in `dcp`, of the heads that this rank merges. Their products are partial. [hidden, part heads * v] */
  readonly output: readonly Tensor[];
  /**
   * W_UK, transposed per head; absent when the model has no nope part. Over the whole latent where some tokens are
   * scored exactly. [heads, latentColumns, n]
   */
  readonly keyUp: Tensor | undefined;
  readonly valueUp: Tensor; // W_UV: [heads, v, latentColumns]
  /** Corrections of scores beside exactly scored tokens; absent where there are none of either. */
  readonly old: OldTokens | undefined;
}

/** How scheme tpla with corrections scores the tokens that it does not score exactly; model/tpla/decode-fit.ts. */
export interface OldTokens {
  readonly keyUp: Tensor; // [heads, latentShard, n]
  /** The linear part of what is added to all scores of a query. [heads, 1, n] */
  readonly slope: Tensor;
  /** The constant part. [heads] */
  readonly offset: Tensor;
}

/**
 * @param rotation U [r, r], rows = new basis vectors; undefined: the latent as it stands
 * @param fit corrections of cut attention, of the rotated latent; undefined: none
 */
export async function loadMla(
  checkpoint: Checkpoint,
  plan: ShardPlan,
  rank: RankPlan,
  uploader: WeightUploader,
  layer: number,
  frequencies: Tensor,
  rotation: Float32Array | undefined,
  fit: LayerFit | undefined,
  energyShares: Float64Array | undefined, // [r]; undefined: the norm is exact
): Promise<MlaWeights> {
  const model = checkpoint.config;
  const config = model.attention;
  invariant(config.kind === 'mla', 'loadMla called for a model without a latent');
  const queryRows = times(rank.heads, config.nopeDim + config.ropeDim);
  const whole: Range = { start: 0, end: config.latentDim };
  const merged = plan.scheme === 'dcp' ? rank.prefillHeads : rank.heads;
  const parts = new HeadParts(model, uploader, layer, plan.latentGroups === 1 ? rank.heads : rank.prefillHeads);
  const project = (wanted: ProjectionParts): Promise<MlaProjection> =>
    loadProjection(model, uploader, layer, rank.heads.start, parts, wanted, rotation);
  const { sinks, window } = plan.exactTokens;
  const kept = cachedLatent(rank);
  const unread = rank.rank < plan.worldSize / plan.latentGroups ? 0 : size(rank.sharedLatent);
  const scoresWhole = sinks + window > 0 && config.near === undefined;
  const shard = { keys: scoresWhole ? [whole] : kept, values: kept, unread };
  const plain = await project({ heads: rank.heads, outputHeads: merged, latent: shard });
  const decode = fit === undefined ? plain : corrected(plain, model, plan, rank, uploader, layer, fit);
  return {
    kind: 'mla',
    queryDown:
      config.queryLoraDim === null
        ? undefined
        : {
            matrix: await uploader.matrix('queryDown', layer),
            bias: await uploader.optionalVector('queryDownBias', layer),
            gain: await uploader.vector('queryDownNorm', layer),
          },
    queryBias: await uploader.optionalVector('queryBias', layer, queryRows),
    ...(await loadLatentDown(config, model.hiddenDim, uploader, layer, rotation)),
    latentShard: kept,
    ropeShard: rank.ropeKey,
    shardNormFactor: energyShares === undefined ? undefined : shardNormFactor(energyShares, rank.latent),
    decode,
    prefill:
      plan.latentGroups === 1
        ? decode
        : size(rank.prefillHeads) === 0
          ? undefined
          : await project({
              heads: rank.prefillHeads,
              outputHeads: rank.prefillHeads,
              latent: { keys: [whole], values: [whole], unread: 0 },
            }),
    outputBias: rank.rank === 0 ? await uploader.optionalVector('outputBias', layer) : undefined,
    decodeBias: fit !== undefined && rank.rank === 0 ? uploader.values(fit.bias) : undefined,
    frequencies,
    near: config.near && (await loadNear(config, config.near, model.numHeads, plan, rank, uploader, layer)),
  };
}

/** Heads of the model, not counted from the first local one. */
interface ProjectionParts {
  readonly heads: Range;
  readonly outputHeads: Range;
  readonly latent: {
    readonly keys: readonly Range[];
    readonly values: readonly Range[];
    /** Leading columns whose values are another group's to add. */
    readonly unread: number;
  };
}

/** W_Q and W_O of one layer by groups of heads, each group loaded once. */
class HeadParts {
  private readonly model: ModelConfig;
  private readonly uploader: WeightUploader;
  private readonly layer: number;
  private readonly cut: Range;
  private readonly loaded = new Map<string, Promise<Tensor>>();

  /** @param cut heads that are wanted apart from those before and after them */
  constructor(model: ModelConfig, uploader: WeightUploader, layer: number, cut: Range) {
    this.model = model;
    this.uploader = uploader;
    this.layer = layer;
    this.cut = cut;
  }

  /** @returns [part heads * (n + p), hidden or queryLoraDim] each */
  async query(heads: Range): Promise<Tensor[]> {
    const { nopeDim, ropeDim, queryLoraDim } = this.attention();
    const role = queryLoraDim === null ? 'query' : 'queryUp';
    return await this.load(role, heads, (part) =>
      this.uploader.matrix(role, this.layer, times(part, nopeDim + ropeDim)),
    );
  }

  /** @returns [hidden, part heads * v] each */
  async output(heads: Range): Promise<Tensor[]> {
    // In dcp with more ranks than heads, some merge none.
    if (size(heads) === 0) return [this.uploader.floatTensor(new Float32Array(0), [this.model.hiddenDim, 0], 'f32')];
    const { valueDim } = this.attention();
    return await this.load('output', heads, (part) =>
      this.uploader.matrix('output', this.layer, undefined, times(part, valueDim)),
    );
  }

  private async load(role: LayerRole, heads: Range, load: (part: Range) => Promise<Tensor>): Promise<Tensor[]> {
    const tensors: Tensor[] = [];
    for (const part of split(heads, this.cut)) {
      const key = `${role} ${part.start} ${part.end}`;
      const tensor = this.loaded.get(key) ?? load(part);
      this.loaded.set(key, tensor);
      tensors.push(await tensor);
    }
    return tensors;
  }

  private attention(): MlaConfig {
    const { attention } = this.model;
    invariant(attention.kind === 'mla', 'head parts of a model without a latent');
    return attention;
  }
}

/** What of `range` lies before, in and after `cut`, without empty parts. */
function split(range: Range, cut: Range): Range[] {
  const inside = (position: number): number => Math.min(Math.max(position, range.start), range.end);
  const [first, second] = [inside(cut.start), inside(cut.end)];
  return [
    { start: range.start, end: first },
    { start: first, end: second },
    { start: second, end: range.end },
  ].filter((part) => size(part) > 0);
}

/**
 * Matrices of some heads: W_Q, W_O, and W_UK and W_UV over some latent columns.
 * @param firstLocal the first of the rank's heads
 */
async function loadProjection(
  { attention: config }: ModelConfig,
  uploader: WeightUploader,
  layer: number,
  firstLocal: number,
  parts: HeadParts,
  { heads, outputHeads, latent }: ProjectionParts,
  rotation: Float32Array | undefined,
): Promise<MlaProjection> {
  invariant(config.kind === 'mla', 'a projection of a model without a latent');
  const { nopeDim, valueDim, latentDim } = config;
  const count = size(heads);
  const rows = times(heads, nopeDim + valueDim);
  let up = await uploader.floats('latentUp', layer, rows); // [heads * (n + v), r]
  if (config.latentNormEps !== null) scaleColumns(up, await uploader.floats('latentNorm', layer));
  if (rotation !== undefined) up = timesTransposed(up, rotation, size(rows), latentDim, latentDim);
  const keys = columnsOf(up, size(rows), latentDim, latent.keys); // [heads * (n + v), columns]
  const values = columnsOf(up, size(rows), latentDim, latent.values);
  const keyWidth = keys.length / size(rows);
  const width = values.length / size(rows);
  const keyUp = new Float32Array(count * keyWidth * nopeDim);
  const valueUp = new Float32Array(count * valueDim * width);
  for (let h = 0; h < count; h++) {
    const first = h * (nopeDim + valueDim);
    for (let n = 0; n < nopeDim; n++)
      for (let column = 0; column < keyWidth; column++)
        keyUp[(h * keyWidth + column) * nopeDim + n] = keys[(first + n) * keyWidth + column] ?? 0;
    valueUp.set(values.subarray((first + nopeDim) * width, (first + nopeDim + valueDim) * width), h * valueDim * width);
  }
  for (let row = 0; row < count * valueDim; row++) valueUp.fill(0, row * width, row * width + latent.unread);
  // A norm's gain may take the product beyond half precision.
  const fitsHalf = [keyUp, valueUp].every((values) => values.every((value) => Math.abs(value) < largestHalf));
  const type = fitsHalf ? uploader.floatTypeFor('latentUp', layer) : 'f32';
  return {
    heads: { start: heads.start - firstLocal, end: heads.end - firstLocal },
    query: await parts.query(heads),
    output: await parts.output(outputHeads),
    keyUp: nopeDim === 0 ? undefined : uploader.floatTensor(keyUp, [count, keyWidth, nopeDim], type),
    valueUp: uploader.floatTensor(valueUp, [count, valueDim, width], type),
    old: undefined,
  };
}

/** W_DKV with W_KR and their bias. Only the latent rows are rotated. */
async function loadLatentDown(
  config: MlaConfig,
  hiddenDim: number,
  uploader: WeightUploader,
  layer: number,
  rotation: Float32Array | undefined,
): Promise<{ latentDown: Tensor; latentDownBias: Tensor | undefined }> {
  if (rotation === undefined)
    return {
      latentDown: await uploader.matrix('latentDown', layer),
      latentDownBias: await uploader.optionalVector('latentDownBias', layer),
    };
  const { latentDim, ropeDim } = config;
  const down = await uploader.floats('latentDown', layer); // [r + p, hidden]
  down.set(times2d(rotation, down, latentDim, latentDim, hiddenDim));
  const type = uploader.floatTypeFor('latentDown', layer);
  const latentDown = uploader.floatTensor(down, [latentDim + ropeDim, hiddenDim], type);
  if (uploader.checkpoint.shapeOf('latentDownBias', layer) === undefined)
    return { latentDown, latentDownBias: undefined };
  const bias = await uploader.floats('latentDownBias', layer);
  bias.set(times2d(rotation, bias, latentDim, latentDim, 1));
  return { latentDown, latentDownBias: uploader.values(bias) };
}

const largestHalf = 65504;

/** values[row, column] *= factors[column], in place */
function scaleColumns(values: Float32Array, factors: Float32Array): void {
  const cols = factors.length;
  for (let i = 0; i < values.length; i++) values[i] = (values[i] ?? 0) * (factors[i % cols] ?? 0);
}
