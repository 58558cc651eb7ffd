/**
 * The tokens a conversion is fitted on, and others it is judged on, as windows of a file. Without one the model writes
 * them: own-text.ts. Read next: convert-checkpoint.ts.
 */
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { ConfigError, messageOf } from '../../config/errors.ts';
import { decodeUtf8 } from '../command-context.ts';
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

/** Every (wanted / heldOut)-th window is held out. */
export function deal(windows: readonly (readonly number[])[], counts: WindowCounts): CalibrationText {
  const isHeldOut = (i: number): boolean =>
    Math.floor(((i + 1) * counts.heldOut) / windows.length) > Math.floor((i * counts.heldOut) / windows.length);
  return {
    windows: windows.filter((_, i) => !isHeldOut(i)),
    heldOut: windows.filter((_, i) => isHeldOut(i)),
  };
}
