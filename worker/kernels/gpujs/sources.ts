/**
 * Source text of the gpu.js kernels. Text, not functions: gpu.js translates what a function prints, and compilers,
 * coverage tools and minifiers change that. Sizes are written into the text, so that loops have known bounds and indices
 * are integers; real numbers are constants. Arrays are [y][x]; a kernel computes one cell, or four neighbours at once.
 * A masked score is the constant `masked`, not -Infinity, of which GLSL promises nothing.
 * Next: steps.ts (which kernels make an operation).
 */

/** Cells of four: one read of x serves four rows of the weight. Faster by half in plain JavaScript. */
export const LANES = 4;

/** Where matrix g, row r of a stack of matrices lies in a two-dimensional array: [g * rowStep + r][column + g * columnStep + k]. */
export interface StackLayout {
  readonly rowStep: number;
  readonly column: number;
  readonly columnStep: number;
}

/** Matrices of the stack, and how many batches read them. */
export interface Groups {
  readonly groups: number;
  readonly batches: number;
}

/** out[b][t][m] = sum_k weight[group(b)][m][k] x[b][t][k], four m to a cell. `weight`: how the kernel names the array. */
export function matmulSource(
  layout: StackLayout,
  groups: Groups,
  sizes: { readonly tokens: number; readonly rows: number; readonly columns: number },
  weight: 'w' | 'this.constants.w',
): string {
  const { tokens, rows, columns } = sizes;
  // The last cell may have fewer than four rows; reading the last one again keeps it inside the array.
  const row = (lane: number) =>
    rows % LANES === 0 ? `this.thread.x * 4 + ${lane}` : `Math.min(this.thread.x * 4 + ${lane}, ${rows - 1})`;
  return `function (${weight === 'w' ? 'w, x' : 'x'}) {
    const b = ${groupIndex(groups)};
    const r0 = b * ${layout.rowStep} + ${row(0)};
    const r1 = b * ${layout.rowStep} + ${row(1)};
    const r2 = b * ${layout.rowStep} + ${row(2)};
    const r3 = b * ${layout.rowStep} + ${row(3)};
    const c = ${layout.column} + b * ${layout.columnStep};
    const t = this.thread.z * ${tokens} + this.thread.y;
    let s0 = 0; let s1 = 0; let s2 = 0; let s3 = 0;
    for (let k = 0; k < ${columns}; k++) {
      const v = x[t][k];
      s0 += ${weight}[r0][c + k] * v;
      s1 += ${weight}[r1][c + k] * v;
      s2 += ${weight}[r2][c + k] * v;
      s3 += ${weight}[r3][c + k] * v;
    }
    return [s0, s1, s2, s3];
  }`;
}

/** out[b][t][d] = sum_s p[b][t][s] values[group(b)][s][d], four d to a cell. */
export function mixSource(
  layout: StackLayout,
  groups: Groups,
  sizes: { readonly tokens: number; readonly length: number; readonly columns: number },
): string {
  const { tokens, length, columns } = sizes;
  const column = (lane: number) =>
    columns % LANES === 0 ? `this.thread.x * 4 + ${lane}` : `Math.min(this.thread.x * 4 + ${lane}, ${columns - 1})`;
  return `function (p, values) {
    const b = ${groupIndex(groups)};
    const r = b * ${layout.rowStep};
    const c = ${layout.column} + b * ${layout.columnStep};
    const d0 = c + ${column(0)};
    const d1 = c + ${column(1)};
    const d2 = c + ${column(2)};
    const d3 = c + ${column(3)};
    const t = this.thread.z * ${tokens} + this.thread.y;
    let s0 = 0; let s1 = 0; let s2 = 0; let s3 = 0;
    for (let s = 0; s < ${length}; s++) {
      const v = p[t][s];
      s0 += values[r + s][d0] * v;
      s1 += values[r + s][d1] * v;
      s2 += values[r + s][d2] * v;
      s3 += values[r + s][d3] * v;
    }
    return [s0, s1, s2, s3];
  }`;
}

/** What stands for -Infinity, and below what a score counts as masked. Constants, because 1e30 in the text is read as an integer. */
export const MASK_CONSTANTS = { masked: -1e30, maskedBelow: -1e29 };

/**
 * out[h][t][s] = cap(scale * x[h][t][s]) + mask[m][t][s], where so many heads share a mask m. Constants: scale, softcap,
 * MASK_CONSTANTS.
 */
export function maskedScoresSource(tokens: number, headsPerMask: number, hasSoftcap: boolean): string {
  return `function (x, mask) {
    const bias = mask[Math.floor(this.thread.z / ${headsPerMask}) * ${tokens} + this.thread.y][this.thread.x];
    if (bias < this.constants.maskedBelow) { return this.constants.masked; }
    const score = x[this.thread.z * ${tokens} + this.thread.y][this.thread.x] * this.constants.scale;
    return ${hasSoftcap ? `this.constants.softcap * Math.tanh(${clamped('score / this.constants.softcap')})` : 'score'} + bias;
  }`;
}

/** out[row] = [maximum, sum of exp(x - maximum)]; a row that is masked throughout: [masked, 0]. Constants: MASK_CONSTANTS. */
export function rowStatsSource(length: number): string {
  return `function (x) {
    let max = this.constants.masked;
    for (let s = 0; s < ${length}; s++) { max = Math.max(max, x[this.thread.x][s]); }
    let sum = 0;
    for (let s = 0; s < ${length}; s++) {
      if (x[this.thread.x][s] > this.constants.maskedBelow) { sum += Math.exp(x[this.thread.x][s] - max); }
    }
    return [max, sum];
  }`;
}

/** out[row][s] = exp(x[row][s] - maximum) / sum; 0 where masked. Constants: MASK_CONSTANTS. */
export function softmaxWeightsSource(): string {
  return `function (x, stats) {
    const score = x[this.thread.y][this.thread.x];
    if (score < this.constants.maskedBelow) { return 0; }
    return Math.exp(score - stats[this.thread.y][0]) / stats[this.thread.y][1];
  }`;
}

/** out[row] = 1 / sqrt(mean(x^2) + eps). Constant: eps. */
export function rmsSource(columns: number): string {
  return `function (x) {
    let sum = 0;
    for (let i = 0; i < ${columns}; i++) { sum += x[this.thread.x][i] * x[this.thread.x][i]; }
    return 1 / Math.sqrt(sum / ${columns} + this.constants.eps);
  }`;
}

export function scaleRowsSource(): string {
  return `function (x, factors) { return x[this.thread.y][this.thread.x] * factors[this.thread.y]; }`;
}

/** x [tokens * heads, dim]; cos, sin [tokens, dim], sin negative for the first of a pair. */
export function ropeSource(heads: number, dim: number, interleaved: boolean): string {
  const partner = interleaved
    ? `const partner = i + 1 - 2 * (i % 2);`
    : `let partner = i + ${dim / 2}; if (i >= ${dim / 2}) { partner = i - ${dim / 2}; }`;
  return `function (x, cos, sin) {
    const i = this.thread.x;
    ${partner}
    const r = this.thread.z * ${heads} + this.thread.y;
    return x[r][i] * cos[this.thread.z][i] + x[r][partner] * sin[this.thread.z][i];
  }`;
}

export function binarySource(operator: '+' | '*', broadcast: boolean): string {
  const b = broadcast ? 'b[this.thread.x]' : 'b[this.thread.y][this.thread.x]';
  return `function (a, b) { return a[this.thread.y][this.thread.x] ${operator} ${b}; }`;
}

/** Constant: factor. */
export function scaleSource(): string {
  return `function (x) { return x[this.thread.y][this.thread.x] * this.constants.factor; }`;
}

/** Constant: softcap. */
export function softcapSource(): string {
  const ratio = clamped('x[this.thread.y][this.thread.x] / this.constants.softcap');
  return `function (x) { return this.constants.softcap * Math.tanh(${ratio}); }`;
}

export function gatedSource(activation: 'silu' | 'gelu-tanh'): string {
  // sqrt(2 / pi) and the cubic coefficient of the tanh form of gelu (arXiv 1606.08415, section 2).
  const inner = '0.7978845608028654 * (g + 0.044715 * g * g * g)';
  const activated = activation === 'silu' ? 'g / (1 + Math.exp(-g))' : `0.5 * g * (1 + Math.tanh(${clamped(inner)}))`;
  return `function (gate, up) {
    const g = gate[this.thread.y][this.thread.x];
    return ${activated} * up[this.thread.y][this.thread.x];
  }`;
}

/** Beyond 15, tanh is 1 in float32, and shaders that build it from exp overflow. */
function clamped(expression: string): string {
  return `Math.max(Math.min(${expression}, 15), -15)`;
}

/** Batch b reads matrix floor(b * groups / batches); half is added because shaders divide inexactly. */
function groupIndex({ groups, batches }: Groups): string {
  if (groups === 1) return '0';
  if (groups === batches) return 'this.thread.z';
  return `Math.floor((this.thread.z + 0.5) / ${batches / groups})`;
}
