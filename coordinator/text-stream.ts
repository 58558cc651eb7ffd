/**
 * From generated tokens to text that may be shown: no half character (a token may end inside a UTF-8 sequence) and no
 * part of a stop string. Both hold text back until it is certain. Read next: engine.ts.
 */

/** Decodes token ids to text; special tokens give no text. */
export type Decode = (ids: readonly number[]) => string;

/** UTF-8 has at most 4 bytes to a character, and a token holds at least one: a longer wait is for a broken sequence. */
const longestCharacterTokens = 4;
const replacementCharacter = '\uFFFD';

/**
 * Turns tokens into text as they come. Each piece is decoded together with the tokens before it, because what a token
 * decodes to may depend on its predecessor (a leading space, a shared character).
 */
export class TokenText {
  readonly #decode: Decode;
  #ids: number[] = [];
  /** Tokens of #ids whose text is out; they stay as context for the next. */
  #shown = 0;

  constructor(decode: Decode) {
    this.#decode = decode;
  }

  /** @returns the text that this token completes, '' while a character is incomplete */
  push(id: number): string {
    this.#ids.push(id);
    const text = this.#pending();
    const waiting = this.#ids.length - this.#shown;
    if (text.endsWith(replacementCharacter) && waiting < longestCharacterTokens) return '';
    return this.#release(text);
  }

  /** What is left at the end, broken characters as U+FFFD. */
  flush(): string {
    return this.#release(this.#pending());
  }

  #pending(): string {
    return this.#decode(this.#ids).slice(this.#decode(this.#ids.slice(0, this.#shown)).length);
  }

  #release(text: string): string {
    this.#ids = this.#ids.slice(this.#shown);
    this.#shown = this.#ids.length;
    return text;
  }
}

/** Passes text on up to the first stop string; holds back an end that may become one. */
export class StopStrings {
  readonly #stops: readonly string[];
  #held = '';

  constructor(stops: readonly string[]) {
    this.#stops = stops.filter((stop) => stop !== '');
  }

  /** @returns text to show, and whether a stop string follows it */
  push(text: string): { text: string; stopped: boolean } {
    const all = this.#held + text;
    const at = this.#first(all);
    if (at !== -1) {
      this.#held = '';
      return { text: all.slice(0, at), stopped: true };
    }
    const keep = this.#possibleStart(all);
    this.#held = all.slice(all.length - keep);
    return { text: all.slice(0, all.length - keep), stopped: false };
  }

  /** What was held back, when nothing more comes. */
  flush(): string {
    const rest = this.#held;
    this.#held = '';
    return rest;
  }

  #first(text: string): number {
    const places = this.#stops.map((stop) => text.indexOf(stop)).filter((place) => place !== -1);
    return places.length === 0 ? -1 : Math.min(...places);
  }

  /** Length of the longest end of `text` that a stop string begins with. */
  #possibleStart(text: string): number {
    const longest = Math.max(0, ...this.#stops.map((stop) => stop.length - 1));
    for (let length = Math.min(longest, text.length); length > 0; length--) {
      const end = text.slice(text.length - length);
      if (this.#stops.some((stop) => stop.startsWith(end))) return length;
    }
    return 0;
  }
}
