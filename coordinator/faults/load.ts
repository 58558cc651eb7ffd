/** The generations of a drill: one of each prompt at once, again and again, compared with what they gave undisturbed. */
import { messageOf } from '../../config/errors.ts';
import type { Generation } from '../generation.ts';
import type { Scheduler } from '../scheduler.ts';
import type { ModelText } from '../text.ts';

export interface LoadResult {
  /** Generations that were compared. */
  readonly answers: number;
  readonly tokens: number;
  /** Tokens that never came, because the generation ended early. */
  readonly lostTokens: number;
  /** Tokens that differ from the undisturbed run. */
  readonly wrongTokens: number;
  /** Why the first of the generations that failed did. */
  readonly firstError: string | null;
}

export class Load {
  readonly #scheduler: Scheduler;
  readonly #text: ModelText;
  readonly #prompts: readonly (readonly number[])[];
  readonly #maxTokens: number;
  #expected: readonly (readonly number[])[] = [];
  #stopped = false;
  #result: LoadResult = { answers: 0, tokens: 0, lostTokens: 0, wrongTokens: 0, firstError: null };

  constructor(scheduler: Scheduler, text: ModelText, prompts: readonly string[], maxTokens: number) {
    this.#scheduler = scheduler;
    this.#text = text;
    this.#prompts = prompts.map((prompt) => text.encodeRaw(prompt));
    this.#maxTokens = maxTokens;
  }

  /** @throws what ends a generation */
  async recordUndisturbed(): Promise<void> {
    this.#expected = await Promise.all(
      this.#prompts.map(async (prompt) => {
        const ids: number[] = [];
        await this.#generate(prompt, ids);
        return ids;
      }),
    );
  }

  /** Resolves after stop(), when the generations of that moment have ended. */
  async run(): Promise<void> {
    await Promise.all(
      this.#prompts.map(async (prompt, i) => {
        while (!this.#stopped) {
          const ids: number[] = [];
          const error: unknown = await this.#generate(prompt, ids).then(
            () => null,
            (reason: unknown) => reason,
          );
          this.#compare(this.#expected[i] ?? [], ids, error);
        }
      }),
    );
  }

  stop(): void {
    this.#stopped = true;
  }

  result(): LoadResult {
    return this.#result;
  }

  #compare(expected: readonly number[], ids: readonly number[], error: unknown): void {
    const { answers, tokens, lostTokens, wrongTokens, firstError } = this.#result;
    // Generations that cannot even begin would otherwise be asked for without end.
    if (error !== null) this.#stopped = true;
    this.#result = {
      answers: answers + 1,
      tokens: tokens + ids.length,
      lostTokens: lostTokens + Math.max(0, expected.length - ids.length),
      wrongTokens: wrongTokens + ids.filter((id, i) => id !== expected[i]).length,
      firstError: firstError ?? (error === null ? null : messageOf(error)),
    };
  }

  async #generate(promptIds: readonly number[], ids: number[]): Promise<void> {
    const request: Generation = {
      promptIds,
      sampling: { temperature: 0, topK: 0, topP: 1, minP: 0, repeatPenalty: 1 },
      seed: 0,
      maxTokens: this.#maxTokens,
      stop: [],
      // Every answer has its full length: more tokens to compare.
      endIds: [],
      text: this.#text.newStream(),
    };
    for await (const event of this.#scheduler.submit(request)) if (event.kind === 'token') ids.push(event.tokenId);
  }
}
