/**
 * A converted layer as stock DeepSeek-V3 code computes one (`tpla convert --portable`): other programs load it without
 * code of ours. What that architecture fixes is arranged for here:
 * - its latent is always RMS-normed: the last latent number is a constant, so large that the norm divides every latent by
 *   nearly the same number (relative error |c|^2 / 2 M^2), which the gain M / sqrt(r) undoes;
 * - scores are divided by sqrt(n + p): the ratio to the source's scale is in the query rows;
 * - every layer turns the same frequencies theta^(-2 i / p): one slot of each of the source's p / 2 fastest, theta' =
 *   theta^(p / d);
 * - rotary pairs are neighbours (2i, 2i + 1);
 * - with attention_bias, kv_a_proj and o_proj have a bias in every layer, q_proj has none.
 * It refuses sources that such code could not compute. Read next: write-converted.ts.
 */
import { ConfigError } from '../../config/errors.ts';
import type { ModelConfig } from '../../config/model-config.ts';
import type { Checkpoint } from '../checkpoint.ts';
import type { HeadLayout, MlaMaps } from './attention-maps.ts';
import { type Dense, rowsOf, scaled, stackRows, zeros } from './dense.ts';

/** M: far above the latents' norm, within f16, and c sqrt(r) / M still above its subnormal numbers. */
const constantLatent = 4096;

/** Of the norm of the latent in DeepSeek's code. */
const latentNormEps = 1e-6;

export interface PortableMaps extends MlaMaps {
  readonly latentNorm: Dense; // [1, r]
}

/** @throws ConfigError naming every feature that stock code cannot compute */
export function checkPortable(source: Checkpoint): void {
  const { config } = source;
  const { attention } = config;
  const hasQueryBias = Array.from({ length: config.numLayers }, (_, layer) => layer).some(
    (layer) => source.shapeOf('queryBias', layer) !== undefined,
  );
  const obstacles = [
    attention.scoreSoftcap > 0 && 'caps attention scores',
    config.logitSoftcap > 0 && 'caps logits',
    config.slidingWindows.some((window) => window > 0) && 'has sliding windows',
    config.postNorms && 'has norms behind its sublayers',
    config.embeddingScale !== 1 && 'scales its embedding',
    config.experts !== null && 'routes to experts',
    hasQueryBias && 'has biases on its queries',
    (config.rope.attentionFactor !== 1 || portableTheta(config, config.rope.frequencies.length * 2) === undefined) &&
      'has scaled rotary frequencies',
  ].filter((obstacle) => obstacle !== false);
  if (obstacles.length > 0)
    throw new ConfigError(
      `portable: this ${config.architecture} model ${obstacles.join('; it ')}, which stock DeepSeek-V3 code cannot compute; convert without --portable`,
    );
}

/** rope_theta of the converted model; undefined where the source's frequencies are no geometric series from 1. */
export function portableTheta({ rope }: ModelConfig, ropeDim: number): number | undefined {
  const { frequencies } = rope;
  const ratio = frequencies[1] ?? 1;
  const isGeometric = frequencies.every((value, i) => Math.abs(value / ratio ** i - 1) < 1e-4);
  return isGeometric ? ratio ** (-ropeDim / 2) : undefined;
}

/** @param maps of the fastest frequencies, one slot of each, halves layout  @returns with one latent number more */
export function portableMaps(maps: MlaMaps, { numHeads, headDim }: HeadLayout, scoreScale: number): PortableMaps {
  const { nopeDim, ropeDim } = maps;
  const latentDim = maps.latentDim + 1;
  const factor = scoreScale * Math.sqrt(nopeDim + ropeDim);
  const query = Array.from({ length: numHeads }, (_, head) => {
    const first = head * (nopeDim + ropeDim);
    const rope = rowsOf(maps.query, first + nopeDim, first + nopeDim + ropeDim);
    return [rowsOf(maps.query, first, first + nopeDim), neighbours(rope)];
  }).flat();
  const constant = zeros(1, maps.latentDown.cols);
  constant.data[constant.cols - 1] = constantLatent;
  const up = zeros(numHeads * (nopeDim + headDim), latentDim);
  for (let row = 0; row < up.rows; row++)
    up.data.set(maps.latentUp.data.subarray(row * (latentDim - 1), (row + 1) * (latentDim - 1)), row * latentDim);
  const gain = zeros(1, latentDim);
  gain.data.fill(Math.sqrt(constantLatent ** 2 / latentDim + latentNormEps));
  return {
    ...maps,
    latentDim,
    query: scaled(stackRows(query), factor),
    latentDown: stackRows([
      rowsOf(maps.latentDown, 0, latentDim - 1),
      constant,
      neighbours(rowsOf(maps.latentDown, latentDim - 1, latentDim - 1 + ropeDim)),
    ]),
    latentUp: up,
    latentNorm: gain,
  };
}

/** Keys of config.json as DeepSeek's code reads them; the caller adds what every converted folder has. */
export function portableConfig(model: ModelConfig, ropeDim: number): Record<string, unknown> {
  return {
    architectures: ['DeepseekV3ForCausalLM'],
    model_type: 'deepseek_v3',
    num_key_value_heads: model.numHeads,
    // Every layer is dense; the number of experts is left to the defaults, which then mean nothing.
    first_k_dense_replace: model.numLayers,
    attention_bias: true,
    rope_interleave: true,
    rope_theta: portableTheta(model, ropeDim),
  };
}

/** Rows of halves (i, i + n / 2) as neighbours (2i, 2i + 1). */
function neighbours(rows: Dense): Dense {
  const half = rows.rows / 2;
  return stackRows(
    Array.from({ length: rows.rows }, (_, row) => {
      const from = Math.floor(row / 2) + (row % 2) * half;
      return rowsOf(rows, from, from + 1);
    }),
  );
}
