/**
 * Attention of one token of each of several sequences whose slots lie side by side: one product for all of them, each
 * against the rows of its own slot under a mask of its own. Read next: attention-gqa.ts and attention.ts, the callers.
 */
import type { AttentionInputs, Segment } from './attention-inputs.ts';
import type { AttendOptions, Ops, Tensor } from './kernels/kernels.ts';
import type { LayerCache } from './latent-cache.ts';
import { columnsOfSlots, rowsOfSlots } from './value-cache.ts';

type KeyValueCache = Extract<LayerCache, { kind: 'keyValue' }>;
type Slots = Pick<AttentionInputs, 'rowsPerSlot'>;

/**
 * One attend per KV head: keys of all heads lie side by side in a row, so that those of one head are evenly spaced over
 * the slots.
 * @param q [tokens, localHeads, headDim]  @returns for each KV head [sequences, its query heads * headDim]
 */
export function attendSequences(
  ops: Ops,
  queriesOfKvHead: readonly number[],
  cache: KeyValueCache,
  q: Tensor,
  segment: Segment,
  { rowsPerSlot }: Slots,
  options: AttendOptions,
): Tensor[] {
  const { sequences } = segment;
  const own = ops.slice(q, 0, segment.offset, sequences); // [sequences, localHeads, headDim]
  const [, , headDim = 0] = q.shape;
  const [, width = 0] = cache.keys.shape;
  let start = 0;
  return queriesOfKvHead.map((heads, kvHead) => {
    const queries = ops.contiguous(ops.slice(own, 1, start, heads));
    start += heads;
    const columns = { start: kvHead * headDim, end: (kvHead + 1) * headDim };
    const keys = rowsOfSlots(ops, cache.keys, rowsPerSlot, segment, columns); // [sequences, cacheRows, headDim]
    const values = columnsOfSlots(ops, cache.values, rowsPerSlot, segment, width, columns);
    const grouped = ops.reshape(queries, [sequences * heads, 1, headDim]);
    const out = ops.attend(grouped, keys, values, segment.mask, options); // [sequences * heads, 1, headDim]
    return ops.reshape(out, [sequences, heads * headDim]);
  });
}

/**
 * The same over latents, which all heads read.
 * @param query [tokens, heads, queryWidth]  @param source [slots * rowsPerSlot, latentColumns + p]
 * @returns [heads, sequences, latentColumns]
 */
export function attendLatents(
  ops: Ops,
  ropeDim: number,
  query: Tensor,
  source: Tensor,
  segment: Segment,
  { rowsPerSlot }: Slots,
  options: AttendOptions,
): Tensor {
  const { sequences } = segment;
  const [, heads = 0, queryWidth = 0] = query.shape;
  const [, width = 0] = source.shape;
  const rows = rowsOfSlots(ops, source, rowsPerSlot, segment, { start: 0, end: width });
  const keys = ops.slice(rows, 2, width - queryWidth, queryWidth); // [sequences, cacheRows, queryWidth]
  const values = ops.slice(rows, 2, 0, width - ropeDim); // [sequences, cacheRows, latentColumns]
  const own = ops.contiguous(ops.slice(query, 0, segment.offset, sequences));
  const grouped = ops.reshape(own, [sequences * heads, 1, queryWidth]);
  const out = ops.attend(grouped, keys, values, segment.mask, options); // [sequences * heads, 1, latentColumns]
  return ops.contiguous(ops.permute(ops.reshape(out, [sequences, heads, width - ropeDim]), [1, 0, 2]));
}
