/**
 * Statistics over the pairs of tokens of one head and one block of queries, which see no key behind the block; blocks
 * are small so that what is computed of every pair stays in a core's cache. Formulas: statistics-programs.ts.
 */
import type { GqaConfig } from '../../config/model-config.ts';
import type { Ops, Tensor } from '../kernels/kernels.ts';
import { dim, sumOverRows, timesSlope } from './operation-helpers.ts';
import type { QueryBlock } from './query-blocks.ts';
import { movedOutputs } from './value-moves.ts';
import type { WindowTensors } from './window-tensors.ts';

/** The pairs of one program. */
export interface PairBlock extends QueryBlock {
  readonly head: number;
  readonly kvHead: number;
  /** 1 for pairs that count, 0 for those of near tokens, which are exact; undefined: all count. [m, t] */
  readonly far: Tensor | undefined;
}

/** Adds to omegas, squares and phases; writes queryWeights and heads of these queries. @param grams [H, d, d] */
export function addPairs(ops: Ops, attention: GqaConfig, grams: Tensor, at: WindowTensors, block: PairBlock): Tensor[] {
  const { head, kvHead, mask } = block;
  const { start, end } = block.queries;
  const rows = end - start;
  const { headDim, scoreScale, scoreSoftcap: cap } = attention;
  const ofHead = (x: Tensor, index: number): Tensor => ops.slice(x, 0, index, 1);
  const q = ops.contiguous(ops.slice(ofHead(at.queries, head), 1, start, rows)); // [1, m, d]
  const scores = ops.matmul(ops.slice(ofHead(at.keys, kvHead), 1, 0, end), q); // [1, m, t]
  const capped = cap > 0 ? ops.softcap(ops.scale(scores, scoreScale), cap) : undefined;
  const p = capped === undefined ? ops.softmax(scores, mask, scoreScale) : ops.softmax(capped, mask, 1);
  const valuesT = ops.slice(at.keyValueT, 0, dim(at.keyValueT, 0) / 2 + kvHead * headDim, headDim); // [d, T]
  const o = ops.matmul(ops.slice(ops.reshape(valuesT, [1, headDim, dim(valuesT, 1)]), 2, 0, end), p); // [1, m, d]
  const place = ops.slice(ops.slice(at.heads, 0, start, rows), 1, head * headDim, headDim);
  ops.copyTo(place, ops.reshape(o, [rows, headDim]));

  const all = ops.multiply(p, p);
  const squares = block.far === undefined ? all : ops.multiply(all, block.far);
  const moving = { gram: ofHead(grams, head), ones: at.ones, zeros: at.noMoves };
  const moves = ops.matmul(
    ops.slice(ofHead(at.moving, head), 1, 0, end),
    movedOutputs(ops, moving, o, scoreScale * scoreScale),
  );
  const raw = ops.multiply(squares, moves);
  const w = capped === undefined ? raw : timesSlope(ops, raw, ops.scale(capped, 1 / cap));
  addColumns(ops, at, ofHead(at.omegas, head), w);
  addColumns(ops, at, ofHead(at.squares, head), squares);
  const seen = ops.reshape(ops.slice(at.ones, 0, 0, end), [1, 1, end]);
  const perQuery = ops.reshape(ops.matmul(seen, w), [1, rows]);
  ops.copyTo(ops.slice(ofHead(at.queryWeights, head), 1, start, rows), perQuery);
  const turned = ops.matmul(ops.slice(at.angles, 2, 0, end), w); // [1, m, d]
  [at.forReal, at.forImaginary].forEach((table, part) => {
    const turnedBack = ops.multiply(turned, ops.slice(table, 0, start, rows));
    const sum = ops.slice(ofHead(at.phases, head), 1, part, 1); // [1, 1, d]
    ops.copyTo(sum, ops.add(sum, sumOverRows(ops, at.zeros, turnedBack)));
  });
  return [];
}

/** @param sum [1, T]  @param pairs [1, m, t] */
function addColumns(ops: Ops, at: WindowTensors, sum: Tensor, pairs: Tensor): void {
  const seen = ops.slice(sum, 1, 0, dim(pairs, 2));
  ops.copyTo(seen, ops.add(seen, ops.reshape(sumOverRows(ops, at.zeros, pairs), [1, dim(pairs, 2)])));
}
