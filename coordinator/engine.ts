/**
 * Generates: prompt as prefill in pieces, then one token per step, sampled here and nowhere else. Also scores given
 * tokens, and returns their logits, by the same steps. Knows no chat template and prints nothing.
 * Read next: sampler.ts, cluster.ts (the steps), stop-strings.ts.
 */
import { ConfigError } from '../config/errors.ts';
import type { TokenStream } from '../model/tokenizer.ts';
import type { Reply, Step, Want } from '../collective/messages.ts';
import type { Cluster, StepResult } from './cluster.ts';
import { sampleToken, seededRandom, type Sampling } from './sampler.ts';
import { StopStrings } from './stop-strings.ts';

export interface Generation {
  /** Not empty. */
  readonly promptIds: readonly number[];
  readonly sampling: Sampling;
  readonly seed: number;
  readonly maxTokens: number;
  readonly stop: readonly string[];
  /** Tokens that end the answer; they give no text. */
  readonly endIds: readonly number[];
  /** Fresh: turns the tokens of this answer into whole characters. */
  readonly text: TokenStream;
}

export type FinishReason = 'stop' | 'length';

export type GenerationEvent =
  /** One token; `text` is what it completes and may be empty. */
  | { readonly kind: 'token'; readonly tokenId: number; readonly text: string }
  /** The last event: text that had been held back, and the sums. */
  | { readonly kind: 'end'; readonly text: string; readonly finishReason: FinishReason; readonly usage: Usage };

export interface Usage {
  readonly promptTokens: number;
  readonly generatedTokens: number;
  /** From the request to the first token. */
  readonly ttftMs: number;
  readonly prefillTokensPerSecond: number;
  /** Of the tokens after the first; 0 when there are none. */
  readonly decodeTokensPerSecond: number;
  /** [worldSize] */
  readonly perRank: readonly RankUsage[];
}

export interface RankUsage {
  readonly rank: number;
  readonly computeMs: number;
  readonly waitMs: number;
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly peakRssBytes: number;
}

/** Every generation and score uses this one sequence of the cache. */
const slot = 0;

/** @throws ConfigError when the prompt does not leave room for one token in the context. */
export async function* generate(cluster: Cluster, request: Generation): AsyncGenerator<GenerationEvent, void> {
  const { promptIds, sampling } = request;
  const { contextTokens } = cluster.options;
  requireRoom(promptIds.length, contextTokens);
  const random = seededRandom(request.seed);
  const stops = new StopStrings(request.stop);
  const meter = new UsageMeter(cluster);
  const history = [...promptIds];
  let result = await prefill(cluster, promptIds, meter);
  const room = Math.min(request.maxTokens, contextTokens - promptIds.length);
  let finishReason: FinishReason = 'length';
  for (let generated = 0; generated < room; generated++) {
    const tokenId = sampleToken(result.logits, history, sampling, random);
    meter.token();
    if (request.endIds.includes(tokenId)) {
      finishReason = 'stop';
      break;
    }
    history.push(tokenId);
    const shown = stops.push(request.text.push(tokenId));
    yield { kind: 'token', tokenId, text: shown.text };
    if (shown.stopped) {
      yield { kind: 'end', text: '', finishReason: 'stop', usage: meter.usage(promptIds.length, generated + 1) };
      return;
    }
    if (generated + 1 === room) break;
    result = await cluster.step(oneStep('decode', history.length - 1, [tokenId], { kind: 'last' }));
    meter.step(result);
  }
  const rest = stops.push(request.text.end());
  yield {
    kind: 'end',
    text: rest.stopped ? rest.text : rest.text + stops.flush(),
    finishReason,
    usage: meter.usage(promptIds.length, history.length - promptIds.length),
  };
}

/** @throws ConfigError when the prompt is empty or leaves no room for a token of the answer */
export function requireRoom(promptTokens: number, contextTokens: number): void {
  if (promptTokens === 0) throw new ConfigError('prompt: it has no tokens; give a text');
  if (promptTokens < contextTokens) return;
  throw new ConfigError(
    `prompt: ${promptTokens} tokens and room for at least 1 more do not fit a context of ${contextTokens}; ` +
      `shorten it by ${promptTokens + 1 - contextTokens} or raise --context`,
  );
}

/** How the tokens of a window are run, for `score` and `windowLogits`. */
export interface WindowRequest {
  readonly ids: readonly number[];
  /** Tokens that are prefilled exactly; the rest runs with the attention of the decode phase. ids.length: all. */
  readonly decodeFrom: number;
}

/**
 * Negative log-likelihood of each token given those before it. [ids.length]; 0 for the first token, and with
 * `decodeFrom` F > 0 for tokens up to F: their predictions come from the prefilled part.
 */
export async function score(cluster: Cluster, request: WindowRequest): Promise<Float64Array> {
  const { ids, decodeFrom } = request;
  const nll = new Float64Array(ids.length);
  const scoresAll = decodeFrom >= ids.length;
  for (const piece of piecesOf(cluster, request)) {
    const scored = scoresAll || piece.phase === 'decode';
    const targets = piece.tokens.map((_, i) => ids[piece.start + i + 1] ?? -1);
    const want: Want = scored ? { kind: 'score', targets } : { kind: 'none' };
    const result = await cluster.step(oneStep(piece.phase, piece.start, piece.tokens, want));
    // The score of position i is that of token i + 1.
    if (scored)
      nll.set(result.nll.subarray(0, Math.min(targets.length, ids.length - piece.start - 1)), piece.start + 1);
  }
  return nll;
}

/** Logits after every token: [ids.length, vocabSize], handed over piece by piece (rows of the piece, its first row). */
export async function windowLogits(
  cluster: Cluster,
  request: WindowRequest,
  take: (rows: Float32Array, firstRow: number) => void,
): Promise<void> {
  for (const { phase, start, tokens } of piecesOf(cluster, request)) {
    const result = await cluster.step(oneStep(phase, start, tokens, { kind: 'all' }));
    take(result.logits, start);
  }
}

async function prefill(cluster: Cluster, ids: readonly number[], meter: UsageMeter): Promise<StepResult> {
  const pieces = piecesOf(cluster, { ids, decodeFrom: ids.length });
  let last: StepResult | undefined;
  for (const [i, { start, tokens }] of pieces.entries()) {
    const want: Want = { kind: i === pieces.length - 1 ? 'last' : 'none' };
    last = await cluster.step(oneStep('prefill', start, tokens, want));
    meter.step(last);
  }
  if (last === undefined) throw new ConfigError('prompt: it has no tokens; give a text');
  return last;
}

interface Piece {
  readonly phase: Step['phase'];
  readonly start: number;
  readonly tokens: number[];
}

/** Consecutive pieces of one phase each, none longer than a step may be. */
function piecesOf(cluster: Cluster, { ids, decodeFrom }: WindowRequest): Piece[] {
  const { maxStepTokens } = cluster.options;
  const pieces: Piece[] = [];
  for (let start = 0; start < ids.length;) {
    const phase = start < decodeFrom ? 'prefill' : 'decode';
    const limit = phase === 'prefill' ? Math.min(decodeFrom, ids.length) : ids.length;
    const end = Math.min(limit, start + maxStepTokens);
    pieces.push({ phase, start, tokens: ids.slice(start, end) });
    start = end;
  }
  return pieces;
}

function oneStep(
  phase: Step['phase'],
  start: number,
  tokens: readonly number[],
  want: Want,
): Omit<Step, 'kind' | 'id'> {
  return { phase, sequences: [{ slot, start, tokens: [...tokens] }], want };
}

/** Sums what the steps of one generation cost. */
class UsageMeter {
  readonly #startedAt = performance.now();
  readonly #sums: RankUsage[];
  #firstTokenAt: number | undefined;
  #prefillEndedAt: number | undefined;
  #lastTokenAt = 0;

  constructor(cluster: Cluster) {
    this.#sums = cluster.ranks.map(({ rank, rssBytes }) => ({
      rank,
      computeMs: 0,
      waitMs: 0,
      bytesSent: 0,
      bytesReceived: 0,
      peakRssBytes: rssBytes,
    }));
  }

  step({ perRank }: StepResult): void {
    for (const [rank, reply] of perRank.entries()) {
      const before = this.#sums[rank];
      if (before !== undefined) this.#sums[rank] = added(before, reply);
    }
    if (this.#firstTokenAt === undefined) this.#prefillEndedAt = performance.now();
  }

  token(): void {
    this.#lastTokenAt = performance.now();
    this.#firstTokenAt ??= this.#lastTokenAt;
  }

  usage(promptTokens: number, generatedTokens: number): Usage {
    const firstTokenAt = this.#firstTokenAt ?? performance.now();
    const prefillMs = (this.#prefillEndedAt ?? firstTokenAt) - this.#startedAt;
    const decodeMs = this.#lastTokenAt - firstTokenAt;
    return {
      promptTokens,
      generatedTokens,
      ttftMs: firstTokenAt - this.#startedAt,
      prefillTokensPerSecond: (1000 * promptTokens) / prefillMs,
      decodeTokensPerSecond: generatedTokens > 1 && decodeMs > 0 ? (1000 * (generatedTokens - 1)) / decodeMs : 0,
      perRank: this.#sums,
    };
  }
}

function added(sum: RankUsage, reply: Reply): RankUsage {
  return {
    rank: sum.rank,
    computeMs: sum.computeMs + reply.computeMs,
    waitMs: sum.waitMs + reply.waitMs,
    bytesSent: sum.bytesSent + reply.bytesSent,
    bytesReceived: sum.bytesReceived + reply.bytesReceived,
    peakRssBytes: Math.max(sum.peakRssBytes, reply.rssBytes),
  };
}
