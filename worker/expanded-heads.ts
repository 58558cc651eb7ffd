/**
 * Keys and values of all heads, computed from the whole latents that one chunk of a prompt reads: MLA before anything is
 * absorbed (DeepSeek-V2, arXiv 2405.04434, section 2.1.2). The heads' own keys are narrower than the latent, so long chunks
 * are cheaper this way. The same sums as in attention.ts in another order.
 */
import type { MlaConfig } from '../config/model-config.ts';
import type { Ops, Tensor } from './kernels/kernels.ts';

/**
 * Whether expanding takes fewer multiplications per head than absorbing W_UK and W_UV: S rows against T tokens cost
 * T S (n + p + v) + S (n + v) r expanded, T S (2 r + p) + T (n + v) r absorbed.
 */
export function expandingIsCheaper(config: MlaConfig, tokens: number, rows: number): boolean {
  const { latentDim, ropeDim, nopeDim, valueDim } = config;
  const maps = (nopeDim + valueDim) * latentDim;
  const expanded = tokens * rows * (nopeDim + ropeDim + valueDim) + rows * maps;
  const absorbed = tokens * rows * (2 * latentDim + ropeDim) + tokens * maps;
  return nopeDim > 0 && expanded < absorbed;
}

/**
 * @param keyUp W_UK transposed, [heads, r, n]  @param valueUp W_UV, [heads, v, r]
 * @param rows whole latents and rotary keys, [cacheRows, r + p]
 * @returns keys [heads, cacheRows, n + p], values [heads, cacheRows, v]
 */
export function expandHeads(
  ops: Ops,
  { latentDim, ropeDim, nopeDim, valueDim }: MlaConfig,
  keyUp: Tensor,
  valueUp: Tensor,
  rows: Tensor,
): { keys: Tensor; values: Tensor } {
  const [[heads = 0], [length = 0]] = [valueUp.shape, rows.shape];
  const latent = ops.contiguous(ops.slice(rows, 1, 0, latentDim)); // [cacheRows, r]
  const ropeKey = ops.contiguous(ops.slice(rows, 1, latentDim, ropeDim)); // [cacheRows, p]
  const keyMap = ops.reshape(ops.contiguous(ops.permute(keyUp, [0, 2, 1])), [heads * nopeDim, latentDim]);
  const valueMap = ops.reshape(valueUp, [heads * valueDim, latentDim]);
  /** [cacheRows, heads * width] -> a view [heads, cacheRows, width] */
  const headsFirst = (x: Tensor, width: number): Tensor =>
    ops.permute(ops.reshape(x, [length, heads, width]), [1, 0, 2]);
  const nopeKeys = ops.contiguous(headsFirst(ops.matmul(keyMap, latent), nopeDim));
  const ropeKeys = repeated(ops, ops.reshape(ropeKey, [1, length, ropeDim]), heads);
  return {
    keys: ops.concat([nopeKeys, ropeKeys], 2),
    values: headsFirst(ops.matmul(valueMap, latent), valueDim),
  };
}

/** `count` copies of x [1, rows, width] along the first axis, by doubling. */
function repeated(ops: Ops, x: Tensor, count: number): Tensor {
  if (count === 1) return x;
  const half = repeated(ops, x, Math.floor(count / 2));
  return ops.concat(count % 2 === 0 ? [half, half] : [half, half, x], 0);
}
