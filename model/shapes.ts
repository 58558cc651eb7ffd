/**
 * The shape that every role must have, from the model's sizes alone: the check between a configuration and its weights
 * when a checkpoint is opened. Vectors count as one row, as Weight has them.
 */
import type { ExpertsConfig, GqaConfig, MlaConfig, ModelConfig } from '../config/model-config.ts';
import type { Role } from './families/description.ts';

export interface ExpectedShape {
  readonly rows: number;
  readonly cols: number;
  /** How the numbers come about, for messages. */
  readonly because: string;
}

type Shapes = Readonly<Partial<Record<Role, ExpectedShape>>>;

/** Roles that the model's kinds of attention and feed-forward do not have are absent. */
export function expectedShapes(config: ModelConfig): Shapes {
  const { hiddenDim, vocabSize, feedForward, attention } = config;
  const table = { rows: vocabSize, cols: hiddenDim, because: 'vocabulary x hidden' };
  const hidden = { rows: 1, cols: hiddenDim, because: 'hidden' };
  const wide = { rows: feedForward.dim, cols: hiddenDim, because: 'feed-forward x hidden' };
  return {
    embedding: table,
    head: table,
    finalNorm: hidden,
    attentionNorm: hidden,
    attentionPostNorm: hidden,
    feedForwardPostNorm: hidden,
    feedForwardNorm: hidden,
    outputBias: hidden,
    gate: wide,
    up: wide,
    down: { rows: hiddenDim, cols: feedForward.dim, because: 'hidden x feed-forward' },
    ...(attention.kind === 'gqa' ? gqaShapes(config, attention) : mlaShapes(config, attention)),
    ...(config.experts === null ? {} : expertShapes(hiddenDim, config.experts)),
  };
}

function expertShapes(hiddenDim: number, { count, dim, sharedDim }: ExpertsConfig): Shapes {
  const experts = `(${count} experts x ${dim})`;
  const wide = { rows: count * dim, cols: hiddenDim, because: `${experts} x hidden` };
  const shared = { rows: sharedDim, cols: hiddenDim, because: 'shared experts x hidden' };
  return {
    router: { rows: count, cols: hiddenDim, because: 'experts x hidden' },
    routerBias: { rows: 1, cols: count, because: 'experts' },
    expertGate: wide,
    expertUp: wide,
    expertDown: { rows: count * hiddenDim, cols: dim, because: `(${count} experts x hidden) x ${dim}` },
    sharedGate: shared,
    sharedUp: shared,
    sharedDown: { rows: hiddenDim, cols: sharedDim, because: 'hidden x shared experts' },
  };
}

function gqaShapes({ hiddenDim, numHeads }: ModelConfig, { numKvHeads, headDim }: GqaConfig): Shapes {
  const queryDim = numHeads * headDim;
  const heads = `(${numHeads} heads x ${headDim})`;
  return {
    query: { rows: queryDim, cols: hiddenDim, because: `${heads} x hidden` },
    queryBias: { rows: 1, cols: queryDim, because: heads },
    queryNorm: { rows: 1, cols: headDim, because: 'a head' },
    keyNorm: { rows: 1, cols: headDim, because: 'a head' },
    ...keyValueShapes(hiddenDim, numKvHeads, headDim),
    output: { rows: hiddenDim, cols: queryDim, because: `hidden x ${heads}` },
  };
}

function mlaShapes({ hiddenDim, numHeads }: ModelConfig, attention: MlaConfig): Shapes {
  const { latentDim, ropeDim, nopeDim, valueDim, queryLoraDim } = attention;
  const queryDim = numHeads * (nopeDim + ropeDim);
  const queries = `${numHeads} heads x (${nopeDim} nope + ${ropeDim} rope)`;
  const latents = `(${latentDim} latent + ${ropeDim} rope key)`;
  const values = `${numHeads} heads x (${nopeDim} nope + ${valueDim} value)`;
  return {
    ...(queryLoraDim === null
      ? { query: { rows: queryDim, cols: hiddenDim, because: `${queries} x hidden` } }
      : {
          queryDown: { rows: queryLoraDim, cols: hiddenDim, because: 'query rank x hidden' },
          queryDownBias: { rows: 1, cols: queryLoraDim, because: 'query rank' },
          queryDownNorm: { rows: 1, cols: queryLoraDim, because: 'query rank' },
          queryUp: { rows: queryDim, cols: queryLoraDim, because: `${queries} x query rank` },
        }),
    queryBias: { rows: 1, cols: queryDim, because: queries },
    latentDown: { rows: latentDim + ropeDim, cols: hiddenDim, because: `${latents} x hidden` },
    latentDownBias: { rows: 1, cols: latentDim + ropeDim, because: latents },
    latentNorm: { rows: 1, cols: latentDim, because: 'latent' },
    latentUp: { rows: numHeads * (nopeDim + valueDim), cols: latentDim, because: `${values} x latent` },
    ropeFrequencies: { rows: 1, cols: ropeDim / 2, because: 'half the rope part' },
    output: { rows: hiddenDim, cols: numHeads * valueDim, because: `hidden x (${numHeads} heads x ${valueDim} value)` },
    farSlope: { rows: 1, cols: numHeads * nopeDim, because: `${numHeads} heads x ${nopeDim} nope` },
    ...(attention.near === undefined ? {} : keyValueShapes(hiddenDim, attention.near.numKvHeads, nopeDim)),
  };
}

function keyValueShapes(hiddenDim: number, numKvHeads: number, headDim: number) {
  const rows = numKvHeads * headDim;
  const because = `(${numKvHeads} KV heads x ${headDim})`;
  const matrix = { rows, cols: hiddenDim, because: `${because} x hidden` };
  const bias = { rows: 1, cols: rows, because };
  return { key: matrix, keyBias: bias, value: matrix, valueBias: bias };
}
