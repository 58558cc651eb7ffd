/** The programs of the shapes that came up last: making them takes as long as running them a few times. */
import { invariant } from '../config/errors.ts';

/** Keeps the most recently used programs and frees the others. */
export class ProgramCache<Programs extends Disposable> implements Disposable {
  private readonly limit: number;
  private readonly entries = new Map<string, Programs>();
  /** What was asked for last: every layer of a step asks for the same. */
  private latest: { readonly key: string; readonly programs: Programs } | undefined;

  constructor(limit: number) {
    this.limit = limit;
  }

  get(key: string, build: () => Programs): Programs {
    if (this.latest?.key === key) return this.latest.programs;
    const programs = this.entries.get(key) ?? build();
    this.latest = { key, programs };
    this.entries.delete(key);
    this.entries.set(key, programs);
    if (this.entries.size > this.limit) {
      const [oldest] = this.entries;
      invariant(oldest !== undefined, 'more programs than the limit, and none');
      this.entries.delete(oldest[0]);
      oldest[1][Symbol.dispose]();
    }
    return programs;
  }

  [Symbol.dispose](): void {
    for (const programs of this.entries.values()) programs[Symbol.dispose]();
    this.entries.clear();
  }
}
