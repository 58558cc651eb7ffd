/**
 * Stop strings in a stream of text: what is shown never contains a stop string or a part of one. Read next: engine.ts.
 */

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
