/**
 * Text that the model writes itself to beginnings of ours, at temperature 1, so that a conversion needs no data. Many short
 * texts rather than a few long ones: they cover more, and a small model stays sensible for some hundred tokens only. They
 * are joined to one stream, and windows are cut so that most begin inside a text, as windows of a file do. The same seed
 * gives the same tokens. Read next: prompts.ts, calibration-text.ts.
 */
import { invariant } from '../../config/errors.ts';
import type { Cluster } from '../cluster.ts';
import { type RandomSource, seededRandom } from '../sampler.ts';
import { type CalibrationText, deal, type WindowCounts } from './calibration-text.ts';

/** Tokens of a text, its beginning included; fewer where a window is shorter. */
const textLength = 256;

/**
 * @param prompts token ids of beginnings; used again from the first when more texts are needed
 * @param onToken called with the number of tokens of all texts so far
 */
export async function writeOwnText(
  cluster: Cluster,
  prompts: readonly (readonly number[])[],
  counts: WindowCounts,
  seed: number,
  onToken: (done: number) => void,
): Promise<CalibrationText> {
  const wanted = (counts.calibration + counts.heldOut) * counts.length;
  const length = Math.min(textLength, counts.length);
  const texts = Array.from({ length: Math.ceil(wanted / length) }, (_, i) =>
    [...(prompts[i % prompts.length] ?? [])].slice(0, length),
  );
  const { slots } = cluster.options;
  let finished = 0;
  for (let first = 0; first < texts.length; first += slots) {
    const batch = texts.slice(first, first + slots);
    // A generator for each text: what one writes does not depend on how many others are written beside it.
    const randoms = batch.map((_, i) => seededRandom(seed + first + i));
    await continueTexts(cluster, batch, randoms, length, (tokens) => onToken(finished + tokens));
    finished += batch.length * length;
  }
  return deal(windowsOfStream(texts.flat(), length, counts), counts);
}

/** Windows that begin half a text behind the start of the stream, which is a ring. */
export function windowsOfStream(stream: readonly number[], length: number, counts: WindowCounts): number[][] {
  const offset = Math.floor(length / 2);
  const turned = [...stream.slice(offset), ...stream.slice(0, offset)];
  return Array.from({ length: counts.calibration + counts.heldOut }, (_, i) =>
    turned.slice(i * counts.length, (i + 1) * counts.length),
  );
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
