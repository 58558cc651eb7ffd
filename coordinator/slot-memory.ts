/**
 * What the cache still holds in slots that nobody uses: prompts of earlier requests. A request whose prompt begins as one
 * of them begins there, which makes the next turn of a chat cheap. Only whole pieces that were prefilled count: they hold the
 * bits that prefilling them again would give. Generated tokens do not, because some schemes compute them approximately.
 */

/** Shorter beginnings are not worth a slot: they are read in one step. */
const leastKept = 64;

export interface PrefilledPrompt {
  readonly ids: readonly number[];
  /** Tokens of each piece, by its start, without gaps from 0. */
  readonly pieces: ReadonlyMap<number, number>;
}

export class SlotMemory {
  readonly #kept: (PrefilledPrompt | undefined)[];
  readonly #usedAt: number[];
  #clock = 0;
  #epoch = 0;

  constructor(slots: number) {
    this.#kept = new Array<PrefilledPrompt | undefined>(slots).fill(undefined);
    this.#usedAt = new Array<number>(slots).fill(0);
  }

  /** The slot was given back with this in it. @param epoch counts how often the cache was lost */
  keep(slot: number, prompt: PrefilledPrompt, epoch: number): void {
    this.#forgetBefore(epoch);
    this.#kept[slot] = lengthOf(prompt.pieces) >= leastKept ? prompt : undefined;
    this.#usedAt[slot] = ++this.#clock;
  }

  /**
   * Which of the free slots a prompt should get: the one that holds most of it, else the first that holds nothing worth
   * keeping, else the one that was left alone longest. What it held is forgotten.
   * @param fresh last tokens of the prompt that must be read anew, at least 1
   * @param onlyWhole an earlier prompt is worth nothing but for its end: near tokens are kept there only
   * @returns the slot and the pieces that need not be prefilled
   */
  take(
    free: readonly number[],
    ids: readonly number[],
    fresh: number,
    epoch: number,
    onlyWhole = false,
  ): { slot: number; pieces: Map<number, number> } {
    this.#forgetBefore(epoch);
    const choices = free.map((slot) => {
      const common = sharedPieces(this.#kept[slot], ids, ids.length - fresh);
      const isWhole = lengthOf(common) === lengthOf(this.#kept[slot]?.pieces ?? new Map());
      const pieces = onlyWhole && !isWhole ? new Map<number, number>() : common;
      const isEmpty = this.#kept[slot] === undefined;
      return { slot, pieces, shared: lengthOf(pieces), age: isEmpty ? slot - 1e9 : (this.#usedAt[slot] ?? 0) };
    });
    const [best] = choices.sort((a, b) => b.shared - a.shared || a.age - b.age);
    const slot = best?.slot ?? 0;
    this.#kept[slot] = undefined;
    return { slot, pieces: best?.pieces ?? new Map<number, number>() };
  }

  #forgetBefore(epoch: number): void {
    if (epoch !== this.#epoch) this.#kept.fill(undefined);
    this.#epoch = epoch;
  }
}

/** The pieces within the common beginning of both prompts and within `limit`; none if they are few tokens. */
function sharedPieces(kept: PrefilledPrompt | undefined, ids: readonly number[], limit: number): Map<number, number> {
  const shared = new Map<number, number>();
  if (kept === undefined) return shared;
  let common = 0;
  while (common < limit && kept.ids[common] === ids[common] && common < kept.ids.length) common++;
  let end = 0;
  for (let length = kept.pieces.get(0); length !== undefined && end + length <= common; length = kept.pieces.get(end)) {
    shared.set(end, length);
    end += length;
  }
  return end >= leastKept ? shared : new Map();
}

function lengthOf(pieces: ReadonlyMap<number, number>): number {
  let length = 0;
  for (const piece of pieces.values()) length += piece;
  return length;
}
