/**
 * Sums over calibration windows that do not depend on how ranks divide them. Floating-point sums depend on their order,
 * so the order is fixed: a binary tree over the windows, halved again and again. A rank has neighbouring windows and
 * returns one float64 sum for each largest node of the tree that lies within them (one, for two ranks); the coordinator
 * adds those up the tree. Words: segment (a node of the tree: windows start .. end). Cost: at most 2 log2(windows) sums
 * per rank. Read next: worker/calibration/calibration-session.ts.
 */
import { invariant } from '../config/errors.ts';
import { cut, size, type Range } from '../config/shard-plan.ts';

/** The windows of one rank: neighbours, as equal in number as they can be. */
export function windowsOfRank(windows: number, worldSize: number, rank: number): Range {
  const range = cut(windows, new Array<number>(worldSize).fill(1), 1)[rank];
  invariant(range !== undefined, `windows of rank ${rank} of ${worldSize}`);
  return range;
}

/** The largest nodes of the tree over 0 .. windows that lie in `own`, in order. */
export function segmentsWithin(own: Range, windows: number): Range[] {
  const within = (node: Range): Range[] => {
    if (size(node) === 0 || node.end <= own.start || node.start >= own.end) return [];
    if (own.start <= node.start && node.end <= own.end) return [node];
    return halves(node).flatMap(within);
  };
  return within({ start: 0, end: windows });
}

/**
 * One rank's payload: the sums of its segments, one behind the other, float64 bits carried as float32 pairs.
 * @param valuesOf numbers of one window, all windows equally many
 */
export function sumSegments(
  segments: readonly Range[],
  length: number,
  valuesOf: (window: number) => Float64Array,
): Float32Array {
  const out = new Float64Array(segments.length * length);
  segments.forEach((segment, i) => out.set(sumOver(segment, valuesOf), i * length));
  return new Float32Array(out.buffer);
}

/** The sum over all windows, from the payloads of all ranks. */
export function joinSegments(payloads: readonly Float32Array[], windows: number): Float64Array {
  const worldSize = payloads.length;
  const sums = new Map<number, { readonly end: number; readonly values: Float64Array }>();
  payloads.forEach((payload, rank) => {
    const segments = segmentsWithin(windowsOfRank(windows, worldSize, rank), windows);
    // Copied: what arrived need not lie at a multiple of 8 bytes.
    const values = new Float64Array(payload.slice().buffer);
    const length = segments.length === 0 ? 0 : values.length / segments.length;
    invariant(
      Number.isInteger(length) && length > 0 === segments.length > 0,
      `rank ${rank}: ${values.length} numbers for ${segments.length} segments`,
    );
    segments.forEach(({ start, end }, i) =>
      sums.set(start, { end, values: values.subarray(i * length, (i + 1) * length) }),
    );
  });
  const join = (node: Range): Float64Array => {
    const arrived = sums.get(node.start);
    if (arrived?.end === node.end) return arrived.values;
    invariant(size(node) > 1, `no sum for window ${node.start} of ${windows}`);
    const [left, right] = halves(node);
    return addInto(join(left), join(right));
  };
  return join({ start: 0, end: windows });
}

function sumOver(node: Range, valuesOf: (window: number) => Float64Array): Float64Array {
  if (size(node) === 1) return valuesOf(node.start);
  const [left, right] = halves(node);
  return addInto(sumOver(left, valuesOf), sumOver(right, valuesOf));
}

/** The larger half first, as cut() gives the larger share to the first rank. */
function halves({ start, end }: Range): [Range, Range] {
  const middle = Math.ceil((start + end) / 2);
  return [
    { start, end: middle },
    { start: middle, end },
  ];
}

function addInto(sum: Float64Array, values: Float64Array): Float64Array {
  invariant(values.length === sum.length, `a sum of ${values.length} numbers beside one of ${sum.length}`);
  for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] ?? 0) + (values[i] ?? 0);
  return sum;
}
