/**
 * The tokens a conversion is fitted on, and others it is judged on, as windows of one or several files. Without a file
 * the model writes them: own-text.ts. Read next: convert-checkpoint.ts.
 */
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { ConfigError, messageOf } from '../../config/errors.ts';
import { decodeUtf8 } from '../command-context.ts';
import type { ModelText } from '../text.ts';
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

/** The model's own text stands for itself. */
export function isOwnText(calibration: readonly string[]): boolean {
  return calibration.includes('self');
}

/** Reports travel with the model: they name files, not paths to them. */
export function calibrationNames(calibration: readonly string[]): string {
  return calibration.map((path) => basename(path)).join(', ');
}

/**
 * Reads calibration files before any process is started.
 * @throws ConfigError: no file, not UTF-8, empty, too short, `self` beside a file, or a model without a tokenizer
 */
export async function prepareText(
  { calibration, text }: Pick<ConversionOptions, 'calibration' | 'text'>,
  counts: WindowCounts,
): Promise<PreparedText> {
  if (isOwnText(calibration)) {
    if (calibration.length > 1)
      throw new ConfigError(
        `calibration: self, the model's own text, cannot be mixed with files, got ${calibration.join(', ')}; give files only, or self alone`,
      );
    return undefined;
  }
  if (text === null)
    throw new ConfigError(
      `calibration: ${calibration.join(', ')} is text, but this model has no tokenizer; use --calibration self`,
    );
  return await readWindows(calibration, counts, text);
}

/** @throws ConfigError: no file, not UTF-8, empty, too short */
export async function readWindows(
  paths: readonly string[],
  counts: WindowCounts,
  text: Pick<ModelText, 'encode'>,
): Promise<CalibrationText> {
  const contents = await Promise.all(paths.map(readCalibrationFile));
  const texts = contents.map((content, i) => ({ name: basename(paths[i] ?? ''), ids: text.encode(content) }));
  return windowsOfTexts(texts, counts);
}

async function readCalibrationFile(path: string): Promise<string> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (error) {
    throw new ConfigError(`calibration: cannot read ${path}: ${messageOf(error)}`, { cause: error });
  }
  const content = decodeUtf8(bytes, `calibration: ${path}`);
  if (content.trim() === '') throw new ConfigError(`calibration: ${path} is empty; give a text to fit on`);
  if (content.includes('\0'))
    throw new ConfigError(`calibration: ${path} holds zero bytes; it is no text, give a UTF-8 one`);
  return content;
}

/**
 * As many windows of each text, of all texts in turn.
 * @throws ConfigError when a text is too short, or there are more texts than windows
 */
export function windowsOfTexts(
  texts: readonly { readonly name: string; readonly ids: readonly number[] }[],
  counts: WindowCounts,
): CalibrationText {
  if (texts.length > counts.calibration)
    throw new ConfigError(
      `calibration: ${texts.length} files, but only ${counts.calibration} windows of ${counts.length} tokens to fit on; raise --calibration-tokens to at least ${texts.length * counts.length}, or give fewer files`,
    );
  const share = (all: number, i: number): number =>
    Math.floor(((i + 1) * all) / texts.length) - Math.floor((i * all) / texts.length);
  const parts = texts.map(({ ids, name }, i) =>
    windowsOfText(
      ids,
      { length: counts.length, calibration: share(counts.calibration, i), heldOut: share(counts.heldOut, i) },
      name,
    ),
  );
  return { windows: inTurn(parts.map((part) => part.windows)), heldOut: inTurn(parts.map((part) => part.heldOut)) };
}

function inTurn<Item>(lists: readonly (readonly Item[])[]): Item[] {
  const longest = Math.max(...lists.map((list) => list.length));
  return Array.from({ length: longest }, (_, i) => lists.flatMap((list) => list.slice(i, i + 1))).flat();
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
