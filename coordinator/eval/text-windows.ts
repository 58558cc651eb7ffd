/**
 * How `tpla eval ppl` and `tpla eval kl` read a text: tokenised whole, once, without start token, then cut into windows
 * that do not overlap; each is run alone from position 0. Tokens behind the last whole window are left out.
 */
import type { Argv } from 'yargs';
import { ConfigError } from '../../config/errors.ts';
import { number, recentWindowFlag } from '../flags.ts';

export interface TextWindowFlags {
  readonly text: string;
  readonly window: number;
  readonly maxWindows: number;
  readonly skipWindows: number;
}

/** Here --window is a piece of text, so the window of scheme tpla has another name. */
export function textWindowFlags<T>(command: Argv<T>) {
  return command
    .option('text', { type: 'string', demandOption: true, describe: 'UTF-8 text file' })
    .option('window', number('window', 2, 1_048_576, true, 1024, 'tokens of a window of text'))
    .option('max-windows', number('max-windows', 0, 1_000_000, true, 0, 'windows to score; 0: all'))
    .option('skip-windows', number('skip-windows', 0, 1_000_000, true, 0, 'windows to leave out at the beginning'))
    .option('recent-window', recentWindowFlag);
}

/** @param ids of the whole text  @throws ConfigError when no window is left */
export function windowsOf(ids: readonly number[], flags: TextWindowFlags): number[][] {
  const whole = Math.floor(ids.length / flags.window);
  const end = flags.maxWindows === 0 ? whole : Math.min(whole, flags.skipWindows + flags.maxWindows);
  const windows: number[][] = [];
  for (let w = flags.skipWindows; w < end; w++) windows.push(ids.slice(w * flags.window, (w + 1) * flags.window));
  if (windows.length > 0) return windows;
  throw new ConfigError(
    `--text ${flags.text}: ${ids.length} tokens are ${whole} whole windows of ${flags.window}, of which --skip-windows ` +
      `leaves out ${flags.skipWindows}; use a longer text or a smaller --window`,
  );
}

/** @throws ConfigError when nothing of a window would be decoded */
export function requireDecoded(decodeFrom: number | undefined, window: number): void {
  if (decodeFrom !== undefined && decodeFrom >= window)
    throw new ConfigError(`--decode-from: ${decodeFrom} leaves nothing of a window of ${window}; use less`);
}
