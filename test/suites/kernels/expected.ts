/**
 * What each operation should return, written a second time: flat row-major arrays, index arithmetic, float64. Shares no
 * code with worker/kernels/reference, so that a mistake there shows.
 */

export interface Values {
  readonly shape: readonly number[];
  readonly data: ArrayLike<number>;
}

/** weight [bw, m, k], x [bx, t, k] -> [bx, t, m] */
export function expectedMatmul(weight: Values, x: Values): number[] {
  const [groups = 0, rows = 0, columns = 0] = weight.shape;
  const [batches = 0, tokens = 0] = x.shape;
  const out: number[] = [];
  for (let b = 0; b < batches; b++) {
    const group = Math.floor((b * groups) / batches);
    for (let t = 0; t < tokens; t++) {
      for (let m = 0; m < rows; m++) {
        let sum = 0;
        for (let k = 0; k < columns; k++) {
          sum += weight.data[(group * rows + m) * columns + k]! * x.data[(b * tokens + t) * columns + k]!;
        }
        out.push(sum);
      }
    }
  }
  return out;
}

/** x [.., columns] */
export function expectedRmsNorm(x: Values, eps: number): number[] {
  const columns = x.shape.at(-1)!;
  return Array.from(x.data, (value, index) => {
    const start = index - (index % columns);
    let squares = 0;
    for (let i = 0; i < columns; i++) squares += x.data[start + i]! ** 2;
    return value / Math.sqrt(squares / columns + eps);
  });
}

/** x [tokens, heads, dim] */
export function expectedRope(
  x: Values,
  positions: ArrayLike<number>,
  frequencies: ArrayLike<number>,
  interleaved: boolean,
  attentionFactor: number,
): number[] {
  const [, heads = 0, dim = 0] = x.shape;
  return Array.from(x.data, (value, index) => {
    const column = index % dim;
    const token = Math.floor(index / (dim * heads));
    const pair = interleaved ? column >> 1 : column % (dim / 2);
    const isFirst = interleaved ? column % 2 === 0 : column < dim / 2;
    const partner = x.data[index + (isFirst ? 1 : -1) * (interleaved ? 1 : dim / 2)]!;
    const angle = positions[token]! * frequencies[pair]!;
    const turned = value * Math.cos(angle) + (isFirst ? -partner : partner) * Math.sin(angle);
    return turned * attentionFactor;
  });
}

/** x [heads, tokens, length], mask [tokens, length] */
export function expectedSoftmax(x: Values, mask: ArrayLike<number>, scale: number): number[] {
  const [heads = 0, tokens = 0, length = 0] = x.shape;
  const out: number[] = [];
  for (let row = 0; row < heads * tokens; row++) {
    const scores: number[] = [];
    for (let s = 0; s < length; s++)
      scores.push(scale * x.data[row * length + s]! + mask[(row % tokens) * length + s]!);
    const max = Math.max(...scores);
    const weights = scores.map((score) => (max === -Infinity ? 0 : Math.exp(score - max)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    out.push(...weights.map((weight) => (sum === 0 ? 0 : weight / sum)));
  }
  return out;
}

/** q [heads, tokens, dk], keys [groups, length, dk], values [groups, length, dv] -> [heads, tokens, dv] */
export function expectedAttend(
  q: Values,
  keys: Values,
  values: Values,
  mask: ArrayLike<number>,
  scale: number,
  softcap: number,
): number[] {
  const [heads = 0, tokens = 0] = q.shape;
  const [groups = 0, length = 0, valueDim = 0] = values.shape;
  const scores = expectedMatmul(keys, q).map((score) =>
    softcap === 0 ? scale * score : softcap * Math.tanh((scale * score) / softcap),
  );
  const weights = expectedSoftmax({ shape: [heads, tokens, length], data: scores }, mask, 1);
  const out: number[] = [];
  for (let row = 0; row < heads * tokens; row++) {
    const group = Math.floor((Math.floor(row / tokens) * groups) / heads);
    for (let d = 0; d < valueDim; d++) {
      let sum = 0;
      for (let s = 0; s < length; s++) {
        sum += weights[row * length + s]! * values.data[(group * length + s) * valueDim + d]!;
      }
      out.push(sum);
    }
  }
  return out;
}

/** Axes of a row-major array reordered: axis i of the result is axis order[i]. */
export function expectedPermute(x: Values, order: readonly number[]): Values {
  const shape = order.map((axis) => x.shape[axis]!);
  const stride = (axis: number) => x.shape.slice(axis + 1).reduce((product, size) => product * size, 1);
  const total = shape.reduce((product, size) => product * size, 1);
  const data = Array.from({ length: total }, (_, index) => {
    let rest = index;
    let source = 0;
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      source += (rest % shape[axis]!) * stride(order[axis]!);
      rest = Math.floor(rest / shape[axis]!);
    }
    return x.data[source]!;
  });
  return { shape, data };
}

/** Elements start .. start + length of an axis. */
export function expectedSlice(x: Values, axis: number, start: number, length: number): Values {
  const inner = x.shape.slice(axis + 1).reduce((product, size) => product * size, 1);
  const size = x.shape[axis]!;
  const data = Array.from(x.data).filter((_, index) => {
    const position = Math.floor(index / inner) % size;
    return position >= start && position < start + length;
  });
  return { shape: x.shape.with(axis, length), data };
}

/** The nearest f16 in its normal range, ties to even. */
export function nearestHalf(value: number): number {
  const step = 2 ** (Math.floor(Math.log2(Math.abs(value))) - 10);
  const steps = value / step;
  const below = Math.floor(steps);
  const isTie = steps - below === 0.5;
  const rounded = isTie ? below + (Math.abs(below) % 2) : Math.round(steps);
  return rounded * step;
}
