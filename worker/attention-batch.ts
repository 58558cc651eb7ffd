/**
 * Attention of one token of each of several sequences whose slots lie side by side: one product for all of them, each
 * against the rows of its own slot under a mask of its own. Read next: attention-gqa.ts, attention.ts and schemes/, the callers.
 */
import type { AttentionInputs, Segment } from './attention-inputs.ts';
import type { AttendOptions, Ops, PartialAttention, Tensor } from './kernels/kernels.ts';
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
  slots: Slots,
  options: AttendOptions,
): Tensor {
  const { q, keys, values } = groupedBySequence(ops, ropeDim, query, source, segment, slots);
  return headsFirst(ops, segment, ops.attend(q, keys, values, segment.mask, options));
}

/**
 * The same over a part of the positions.
 * @returns out [heads, sequences, latentColumns], logSumExp [heads, sequences]
 */
export function attendPartOfLatents(
  ops: Ops,
  ropeDim: number,
  query: Tensor,
  source: Tensor,
  segment: Segment,
  slots: Slots,
  options: AttendOptions,
): PartialAttention {
  const { q, keys, values } = groupedBySequence(ops, ropeDim, query, source, segment, slots);
  return partOfHeads(ops, segment, ops.attendPartial(q, keys, values, segment.mask, options));
}

/** @param part of [sequences * heads, 1, columns]  @returns out [heads, sequences, columns], logSumExp [heads, sequences] */
export function partOfHeads(
  ops: Ops,
  segment: Pick<Segment, 'sequences'>,
  { out, logSumExp }: PartialAttention,
): PartialAttention {
  const [rows = 0] = logSumExp.shape;
  const bySequence = ops.reshape(logSumExp, [segment.sequences, rows / segment.sequences]);
  return { out: headsFirst(ops, segment, out), logSumExp: ops.contiguous(ops.permute(bySequence, [1, 0])) };
}

/** [sequences * heads, 1, columns] -> [heads, sequences, columns] */
function headsFirst(ops: Ops, { sequences }: Pick<Segment, 'sequences'>, x: Tensor): Tensor {
  const [rows = 0, , columns = 0] = x.shape;
  return ops.contiguous(ops.permute(ops.reshape(x, [sequences, rows / sequences, columns]), [1, 0, 2]));
}

/** Queries of all heads of a sequence one below the other: [sequences * heads, 1, queryWidth], against the rows of its slot. */
function groupedBySequence(
  ops: Ops,
  ropeDim: number,
  query: Tensor,
  source: Tensor,
  segment: Segment,
  { rowsPerSlot }: Slots,
): { q: Tensor; keys: Tensor; values: Tensor } {
  const { sequences } = segment;
  const [, heads = 0, queryWidth = 0] = query.shape;
  const [, width = 0] = source.shape;
  const rows = rowsOfSlots(ops, source, rowsPerSlot, segment, { start: 0, end: width });
  const own = ops.contiguous(ops.slice(query, 0, segment.offset, sequences));
  return {
    q: ops.reshape(own, [sequences * heads, 1, queryWidth]),
    keys: ops.slice(rows, 2, width - queryWidth, queryWidth), // [sequences, cacheRows, queryWidth]
    values: ops.slice(rows, 2, 0, width - ropeDim), // [sequences, cacheRows, latentColumns]
  };
}
