/**
 * One generation while it runs: its tokens, how many of them are in the cache, what it needs next and what it does with
 * the logits it gets. Knows nothing of other sequences. Read next: scheduler.ts, which puts sequences into steps.
 */
import { invariant } from '../config/errors.ts';
import type { Reply, Step } from '../collective/messages.ts';
import { EventChannel } from './event-channel.ts';
import type { FinishReason, Generation, GenerationEvent } from './generation.ts';
import { logprobsOf } from './logprobs.ts';
import { sampleToken, seededRandom, type RandomSource } from './sampler.ts';
import type { PrefilledPrompt } from './slot-memory.ts';
import { StopStrings } from './stop-strings.ts';
import { UsageMeter } from './usage-meter.ts';

/** Tokens refused by a constraint before all of the vocabulary is looked at. */
const refusalsBeforeMask = 8;

/** What a sequence puts into a step. */
export interface Work {
  readonly phase: Step['phase'];
  readonly start: number;
  readonly tokens: readonly number[];
}

export class Sequence {
  readonly request: Generation;
  readonly events = new EventChannel<GenerationEvent>();
  /** Prompt, then generated tokens. */
  readonly ids: number[];
  /** Tokens that the cache holds. */
  cached = 0;
  /** Where in the cache; undefined while it waits. */
  slot: number | undefined;
  /** Prompt tokens that the slot held already. */
  reused = 0;
  finished = false;
  /** Order in which sequences came. */
  readonly arrival = performance.now();
  /** Prompt tokens of each piece that was prefilled, by its start. */
  readonly #pieces = new Map<number, number>();
  readonly #random: RandomSource;
  readonly #stops: StopStrings;
  readonly #meter = new UsageMeter();
  readonly #maxTokens: number;

  constructor(request: Generation, contextTokens: number) {
    this.request = request;
    this.ids = [...request.promptIds];
    this.#random = seededRandom(request.seed);
    this.#stops = new StopStrings(request.stop);
    this.#maxTokens = Math.min(request.maxTokens, contextTokens - request.promptIds.length);
  }

  get generated(): number {
    return this.ids.length - this.request.promptIds.length;
  }

  /** Prompt tokens that are not in the cache yet. */
  get promptLeft(): number {
    return Math.max(0, this.request.promptIds.length - this.cached);
  }

  /** Begins in a slot that holds these pieces of the prompt already; none: at the start. */
  enter(slot: number, pieces: ReadonlyMap<number, number>): void {
    this.slot = slot;
    for (const [start, length] of pieces) {
      this.#pieces.set(start, length);
      this.reused += length;
    }
    this.cached = this.reused;
  }

  /** What of the prompt its slot holds. */
  get prefilled(): PrefilledPrompt {
    const pieces = [...this.#pieces].filter(([start, length]) => start + length <= this.cached);
    return { ids: this.request.promptIds, pieces: new Map(pieces) };
  }

  /**
   * Generated tokens go through the attention of the decode phase also when they are computed again, and the prompt in
   * the pieces it had, so that a rebuilt cache holds the bits of the lost one.
   */
  work(maxTokens: number): Work {
    this.#meter.begin();
    const start = this.cached;
    const end = this.promptLeft > 0 ? this.request.promptIds.length : this.ids.length;
    const tokens = this.ids.slice(start, Math.min(end, start + (this.#pieces.get(start) ?? maxTokens)));
    return { phase: this.promptLeft > 0 ? 'prefill' : 'decode', start, tokens };
  }

  /** Whether the logits after this work choose the next token. */
  samplesAfter({ start, tokens }: Work): boolean {
    return start + tokens.length === this.ids.length;
  }

  /** The work is done. @param logits [vocabSize] after its last token; undefined where they choose nothing */
  advance(work: Work, perRank: readonly Reply[], logits: Float32Array | undefined): void {
    if (work.phase === 'prefill') this.#pieces.set(work.start, work.tokens.length);
    this.cached += work.tokens.length;
    this.#meter.step(perRank);
    if (logits !== undefined) this.#take(logits);
  }

  /** Ends without a result. */
  fail(error: Error): void {
    this.finished = true;
    this.events.end(error);
  }

  #take(logits: Float32Array): void {
    const { request } = this;
    const tokenId = this.#choose(logits);
    this.#meter.token();
    if (request.endIds.includes(tokenId)) return this.#finish('stop');
    this.ids.push(tokenId);
    request.constraint?.push(tokenId);
    const shown = this.#stops.push(request.text.push(tokenId));
    const logprobs = request.topLogprobs === undefined ? undefined : logprobsOf(logits, tokenId, request.topLogprobs);
    this.events.push({ kind: 'token', tokenId, text: shown.text, logprobs });
    if (shown.stopped) this.#end('', 'stop');
    else if (request.constraint?.done === true) this.#finish('stop');
    else if (this.generated >= this.#maxTokens) this.#finish('length');
  }

  #choose(logits: Float32Array): number {
    const { constraint, sampling, endIds } = this.request;
    const scores = this.#adjusted(logits);
    if (constraint === undefined) return sampleToken(scores, this.ids, sampling, this.#random);
    // Most choices of a model that was told the form are allowed: the vocabulary is only searched when several are not.
    for (let refused = 0; refused < refusalsBeforeMask; refused++) {
      const tokenId = sampleToken(scores, this.ids, sampling, this.#random);
      if (constraint.allows(tokenId)) return tokenId;
      scores[tokenId] = -Infinity;
    }
    let allowed = 0;
    for (let token = 0; token < scores.length; token++) {
      if (scores[token] === -Infinity) continue;
      if (constraint.allows(token)) allowed++;
      else scores[token] = -Infinity;
    }
    if (allowed > 0) return sampleToken(scores, this.ids, sampling, this.#random);
    const [end] = endIds;
    invariant(end !== undefined, 'a constraint allows no token, and the model has none that ends an answer');
    return end;
  }

  /** A copy with bias and penalties, or the logits themselves where nothing changes them. [vocabSize] */
  #adjusted(logits: Float32Array): Float32Array {
    const { logitBias, frequencyPenalty = 0, presencePenalty = 0, constraint } = this.request;
    const isPlain = logitBias === undefined && frequencyPenalty === 0 && presencePenalty === 0;
    if (isPlain && constraint === undefined) return logits;
    const scores = logits.slice();
    for (const [token, bias] of logitBias ?? []) if (token < scores.length) scores[token] = (scores[token] ?? 0) + bias;
    if (frequencyPenalty === 0 && presencePenalty === 0) return scores;
    const generated = this.ids.slice(this.request.promptIds.length);
    for (const token of generated) scores[token] = (scores[token] ?? 0) - frequencyPenalty;
    for (const token of new Set(generated)) scores[token] = (scores[token] ?? 0) - presencePenalty;
    return scores;
  }

  /** No stop string was met: text that was held back is shown. */
  #finish(reason: FinishReason): void {
    const rest = this.#stops.push(this.request.text.end());
    this.#end(rest.stopped ? rest.text : rest.text + this.#stops.flush(), reason);
  }

  #end(text: string, finishReason: FinishReason): void {
    this.finished = true;
    const usage = this.#meter.usage(this.request.promptIds.length, this.reused, this.generated);
    this.events.push({ kind: 'end', text, finishReason, usage });
    this.events.end();
  }
}
