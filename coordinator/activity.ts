/**
 * What a cluster has done: sums since its start and rates of the last seconds, by rank and in all. Fed by the scheduler
 * after each step; read by the cluster view and by metrics. Read next: scheduler.ts, http/status-routes.ts.
 */
import type { StepResult } from './ask-ranks.ts';
import type { Turn } from './scheduler.ts';

/** Rates are means over this long. */
const windowMs = 5000;

export interface RankActivity {
  readonly rank: number;
  readonly computeMs: number;
  readonly waitMs: number;
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly rssBytes: number;
}

export interface Rates {
  readonly promptTokensPerSecond: number;
  readonly generatedTokensPerSecond: number;
  readonly stepsPerSecond: number;
  /** Sums per second of time. [worldSize] */
  readonly perRank: readonly Omit<RankActivity, 'rssBytes'>[];
}

interface Sample {
  readonly at: number;
  readonly promptTokens: number;
  readonly generatedTokens: number;
  readonly perRank: readonly RankActivity[];
}

export class Activity {
  promptTokens = 0;
  generatedTokens = 0;
  steps = 0;
  /** Sums since the start. [worldSize] */
  perRank: readonly RankActivity[] = [];
  #samples: Sample[] = [];

  step(turn: Turn, result: StepResult): void {
    const counted = { promptTokens: 0, generatedTokens: 0 };
    for (const { sequence, work } of turn.sequences) {
      if (turn.phase === 'prefill') counted.promptTokens += work.tokens.length;
      if (sequence.samplesAfter(work)) counted.generatedTokens++;
    }
    this.steps++;
    this.promptTokens += counted.promptTokens;
    this.generatedTokens += counted.generatedTokens;
    this.perRank = result.perRank.map((reply, rank) => sum(this.perRank[rank], reply));
    this.#samples.push({ at: performance.now(), ...counted, perRank: result.perRank });
    this.#forget();
  }

  rates(): Rates {
    this.#forget();
    const seconds = windowMs / 1000;
    const total = (of: (sample: Sample) => number): number =>
      this.#samples.reduce((all, sample) => all + of(sample), 0) / seconds;
    return {
      promptTokensPerSecond: total((sample) => sample.promptTokens),
      generatedTokensPerSecond: total((sample) => sample.generatedTokens),
      stepsPerSecond: this.#samples.length / seconds,
      perRank: this.perRank.map(({ rank }) => ({
        rank,
        computeMs: total((sample) => sample.perRank[rank]?.computeMs ?? 0),
        waitMs: total((sample) => sample.perRank[rank]?.waitMs ?? 0),
        bytesSent: total((sample) => sample.perRank[rank]?.bytesSent ?? 0),
        bytesReceived: total((sample) => sample.perRank[rank]?.bytesReceived ?? 0),
      })),
    };
  }

  #forget(): void {
    const oldest = performance.now() - windowMs;
    const first = this.#samples.findIndex((sample) => sample.at >= oldest);
    this.#samples.splice(0, first === -1 ? this.#samples.length : first);
  }
}

function sum(before: RankActivity | undefined, reply: RankActivity): RankActivity {
  return {
    rank: reply.rank,
    computeMs: (before?.computeMs ?? 0) + reply.computeMs,
    waitMs: (before?.waitMs ?? 0) + reply.waitMs,
    bytesSent: (before?.bytesSent ?? 0) + reply.bytesSent,
    bytesReceived: (before?.bytesReceived ?? 0) + reply.bytesReceived,
    rssBytes: reply.rssBytes,
  };
}
