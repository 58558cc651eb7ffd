/** Sums what the steps of one generation cost, and times its first and last token. Read next: sequence.ts. */
import type { Reply } from '../collective/messages.ts';
import type { Usage, RankUsage } from './generation.ts';

export class UsageMeter {
  readonly #startedAt = performance.now();
  #prefillStartedAt: number | undefined;
  #sums: RankUsage[] = [];
  #firstTokenAt: number | undefined;
  #prefillEndedAt: number | undefined;
  #lastTokenAt = 0;

  /** Call before the first step: what came before is waiting. */
  begin(): void {
    this.#prefillStartedAt ??= performance.now();
  }

  /** @param perRank [worldSize] */
  step(perRank: readonly Reply[]): void {
    this.#sums = perRank.map((reply, rank) => added(this.#sums[rank] ?? nothing(reply.rank), reply));
    if (this.#firstTokenAt === undefined) this.#prefillEndedAt = performance.now();
  }

  token(): void {
    this.#lastTokenAt = performance.now();
    this.#firstTokenAt ??= this.#lastTokenAt;
  }

  /** @param reusedTokens of the prompt, which were in the cache before */
  usage(promptTokens: number, reusedTokens: number, generatedTokens: number): Usage {
    const firstTokenAt = this.#firstTokenAt ?? performance.now();
    const prefillMs = (this.#prefillEndedAt ?? firstTokenAt) - (this.#prefillStartedAt ?? this.#startedAt);
    const decodeMs = this.#lastTokenAt - firstTokenAt;
    return {
      promptTokens,
      reusedTokens,
      generatedTokens,
      ttftMs: firstTokenAt - this.#startedAt,
      prefillTokensPerSecond: (1000 * (promptTokens - reusedTokens)) / prefillMs,
      decodeTokensPerSecond: generatedTokens > 1 && decodeMs > 0 ? (1000 * (generatedTokens - 1)) / decodeMs : 0,
      perRank: this.#sums,
    };
  }
}

function nothing(rank: number): RankUsage {
  return { rank, computeMs: 0, waitMs: 0, bytesSent: 0, bytesReceived: 0, peakRssBytes: 0 };
}

function added(sum: RankUsage, reply: Reply): RankUsage {
  return {
    rank: sum.rank,
    computeMs: sum.computeMs + reply.computeMs,
    waitMs: sum.waitMs + reply.waitMs,
    bytesSent: sum.bytesSent + reply.bytesSent,
    bytesReceived: sum.bytesReceived + reply.bytesReceived,
    peakRssBytes: Math.max(sum.peakRssBytes, reply.peakRssBytes),
  };
}
