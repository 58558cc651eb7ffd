/**
 * The tokens a conversion is fitted on, and others it is judged on: windows of a file, or text that the model writes
 * itself to prompts of ours (temperature 1, many windows at once), so that a conversion needs no data. The same seed
 * gives the same tokens. Read next: prompts.ts, convert-checkpoint.ts.
 */
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { ConfigError, invariant, messageOf } from '../../config/errors.ts';
import type { Cluster } from '../cluster.ts';
import { decodeUtf8 } from '../command-context.ts';
import { type RandomSource, seededRandom } from '../sampler.ts';
import type { ConversionOptions } from './conversion-options.ts';

export interface CalibrationText {
  /** Equal lengths, but for windows of a text that ends. */
  readonly windows: readonly (readonly number[])[];
  /** Not fitted on: for perplexity before and after. */
  readonly heldOut: readonly (readonly number[])[];
}

export interface WindowCounts {
  /** Tokens of a window. */
  readonly length: number;
  readonly calibration: number;
  readonly heldOut: number;
}

/** undefined: the model writes the text itself, once it runs. */
export type PreparedText = CalibrationText | undefined;

/**
 * Reads a calibration file before any process is started.
 * @throws ConfigError: no file, not UTF-8, empty, too short, or a model without a tokenizer
 */
export async function prepareText(
  { calibration, text }: Pick<ConversionOptions, 'calibration' | 'text'>,
  counts: WindowCounts,
): Promise<PreparedText> {
  if (calibration === 'self') return undefined;
  if (text === null)
    throw new ConfigError(
      `calibration: ${calibration} is text, but this model has no tokenizer; use --calibration self`,
    );
  let bytes: Uint8Array;
  try {
    bytes = await readFile(calibration);
  } catch (error) {
    throw new ConfigError(`calibration: cannot read ${calibration}: ${messageOf(error)}`, { cause: error });
  }
  const content = decodeUtf8(bytes, `calibration: ${calibration}`);
  if (content.trim() === '') throw new ConfigError(`calibration: ${calibration} is empty; give a text to fit on`);
  if (content.includes('\0'))
    throw new ConfigError(`calibration: ${calibration} holds zero bytes; it is no text, give a UTF-8 one`);
  return windowsOfText(text.encode(content), counts, basename(calibration));
}

/**
 * Windows spread evenly over a text; those held out lie between the others.
 * @throws ConfigError when the text is too short
 */
export function windowsOfText(ids: readonly number[], counts: WindowCounts, name: string): CalibrationText {
  const wanted = counts.calibration + counts.heldOut;
  const available = Math.floor(ids.length / counts.length);
  if (available < wanted)
    throw new ConfigError(
      `calibration: ${name} has ${ids.length} tokens, expected at least ${wanted * counts.length} = ${counts.calibration} windows to fit on and ${counts.heldOut} to judge by, ${counts.length} tokens each; give a longer text or lower --calibration-tokens`,
    );
  const chosen = Array.from({ length: wanted }, (_, i) => {
    const start = Math.floor((i * available) / wanted) * counts.length;
    return ids.slice(start, start + counts.length);
  });
  return deal(chosen, counts);
}

/**
 * @param prompts token ids of beginnings; used again from the first when there are more windows
 * @param onToken called with the number of tokens of all windows so far
 */
export async function writeOwnText(
  cluster: Cluster,
  prompts: readonly (readonly number[])[],
  counts: WindowCounts,
  seed: number,
  onToken: (done: number) => void,
): Promise<CalibrationText> {
  const wanted = counts.calibration + counts.heldOut;
  const texts = Array.from({ length: wanted }, (_, i) =>
    [...(prompts[i % prompts.length] ?? [])].slice(0, counts.length),
  );
  const { slots } = cluster.options;
  let finished = 0;
  for (let first = 0; first < wanted; first += slots) {
    const batch = texts.slice(first, first + slots);
    // A generator for each window: what one writes does not depend on how many others are written beside it.
    const randoms = batch.map((_, i) => seededRandom(seed + first + i));
    await continueTexts(cluster, batch, randoms, counts.length, (tokens) => onToken(finished + tokens));
    finished += batch.length * counts.length;
  }
  return deal(texts, counts);
}

/** Every (wanted / heldOut)-th window is held out. */
function deal(windows: readonly (readonly number[])[], counts: WindowCounts): CalibrationText {
  const isHeldOut = (i: number): boolean =>
    Math.floor(((i + 1) * counts.heldOut) / windows.length) > Math.floor((i * counts.heldOut) / windows.length);
  return {
    windows: windows.filter((_, i) => !isHeldOut(i)),
    heldOut: windows.filter((_, i) => isHeldOut(i)),
  };
}

/** Extends every text to `length` tokens, one step for all of them at a time; text i uses slot i of the cache. */
async function continueTexts(
  cluster: Cluster,
  texts: readonly number[][],
  randoms: readonly RandomSource[],
  length: number,
  onToken: (done: number) => void,
): Promise<void> {
  const { vocabSize } = cluster;
  const append = (slot: number, logits: Float32Array): void => {
    const [text, random] = [texts[slot], randoms[slot]];
    invariant(text !== undefined && random !== undefined, `no text in slot ${slot}`);
    text.push(drawToken(logits, random));
  };
  for (const [slot, text] of texts.entries()) {
    if (text.length >= length) continue;
    const sequences = [{ slot, start: 0, tokens: [...text] }];
    const { logits } = await cluster.step({ phase: 'prefill', sequences, want: { kind: 'last' } });
    append(slot, logits);
  }
  for (;;) {
    const growing = [...texts.keys()].filter((slot) => (texts[slot]?.length ?? 0) < length);
    onToken(texts.reduce((sum, text) => sum + text.length, 0));
    if (growing.length === 0) return;
    const sequences = growing.map((slot) => {
      const text = texts[slot] ?? [];
      return { slot, start: text.length - 1, tokens: text.slice(-1) };
    });
    const { logits } = await cluster.step({ phase: 'decode', sequences, want: { kind: 'last' } });
    growing.forEach((slot, row) => append(slot, logits.subarray(row * vocabSize, (row + 1) * vocabSize)));
  }
}

/**
 * A token with its softmax probability. Two passes over the vocabulary, no sorting. Leaving out unlikely tokens made the
 * text more even (perplexity 4 instead of 41 for a small model) and the conversion fitted on it no better.
 */
function drawToken(logits: Float32Array, random: RandomSource): number {
  let max = -Infinity;
  for (const logit of logits) if (logit > max) max = logit;
  const weights = new Float64Array(logits.length);
  let sum = 0;
  for (let i = 0; i < weights.length; i++) {
    const weight = Math.exp((logits[i] ?? -Infinity) - max);
    weights[i] = weight;
    sum += weight;
  }
  let left = random() * sum;
  for (let i = 0; i < weights.length; i++) {
    left -= weights[i] ?? 0;
    if (left < 0) return i;
  }
  return weights.length - 1;
}
