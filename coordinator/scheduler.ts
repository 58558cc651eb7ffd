/**
 * Continuous batching: many generations over the slots of one cluster. Each turn is one step of all ranks: either one
 * token for every running sequence, or a piece of one prompt and whole others that fit beside it; the two kinds alternate
 * while there is work for both. Which prompt: the one with the least left, so that a short one does not wait for a long
 * one, but every fourth piece belongs to the oldest, so that the long one ends too. Knows no HTTP and no text.
 * Read next: sequence.ts (one generation), cluster.ts (the step).
 *
 * Rounding: with quantised weights the logits of a batched sequence have the same bits as those of the sequence alone
 * (measured with q4_1). With f32 weights ggml sums a matrix product of one column in another order than of several,
 * which moves logits by some 4e-6: only an exact tie can choose another token.
 */
import { asError, invariant } from '../config/errors.ts';
import { size } from '../config/shard-plan.ts';
import type { Step } from '../collective/messages.ts';
import type { StepResult } from './ask-ranks.ts';
import type { Cluster } from './cluster.ts';
import { requireRoom, type Generation, type GenerationEvent } from './generation.ts';
import { Sequence, type Work } from './sequence.ts';
import { SlotMemory } from './slot-memory.ts';

/** What the scheduler needs of a cluster; a supervised one may be another after a failure. */
export type StepRunner = Pick<Cluster, 'step' | 'options' | 'plan' | 'vocabSize' | 'cacheEpoch'>;

export interface SchedulerOptions {
  /** Generations that may wait for a slot. */
  readonly maxQueued: number;
  /** Told after each step, for metrics. */
  readonly onStep?: ((turn: Turn, result: StepResult, ms: number) => void) | undefined;
  /** Asked when a step has failed: resolves when an empty cache is ready and all sequences are to be computed again. */
  readonly recover?: ((error: Error) => Promise<void>) | undefined;
}

/** What one step was made of. */
export interface Turn {
  readonly phase: 'prefill' | 'decode';
  readonly sequences: readonly { readonly sequence: Sequence; readonly work: Work }[];
}

/** Too many generations are waiting. */
export class QueueFullError extends Error {
  override readonly name = 'QueueFullError';
  readonly queued: number;

  constructor(queued: number) {
    super(`queue: ${queued} requests are waiting already; try again later`);
    this.queued = queued;
  }
}

/** Prompt tokens of a step while other sequences wait for it: what they lose is this long. */
const sharedPieceTokens = 64;
/** Of the pieces of prompts, every so many belong to the oldest prompt. */
const oldestEvery = 4;

export class Scheduler implements AsyncDisposable {
  readonly #cluster: StepRunner;
  readonly #options: SchedulerOptions;
  /** By slot. */
  readonly #running: (Sequence | undefined)[];
  readonly #memory: SlotMemory;
  readonly #queue: Sequence[] = [];
  #loop: Promise<void> | undefined;
  #lastPhase: Turn['phase'] = 'decode';
  #pieces = 0;
  /** Memory of the largest step's logits: megabytes per step would keep the garbage collector busy. [sequences, vocabSize] */
  #logits: Float32Array = new Float32Array(0);
  #closed: Error | undefined;

  constructor(cluster: StepRunner, options: SchedulerOptions) {
    this.#cluster = cluster;
    this.#options = options;
    this.#memory = new SlotMemory(cluster.options.slots);
    this.#running = new Array<Sequence | undefined>(cluster.options.slots).fill(undefined);
  }

  get queued(): number {
    return this.#queue.length;
  }

  get running(): number {
    return this.#sequences().length;
  }

  get slots(): number {
    return this.#running.length;
  }

  /**
   * Takes the request now and gives its events as they come. Leaving the iteration early gives the slot back; so does
   * the request's signal, also between two events.
   * @throws ConfigError when the prompt does not fit, QueueFullError; what ends the cluster ends the events
   */
  submit(request: Generation): AsyncGenerator<GenerationEvent, void> {
    requireRoom(request.promptIds.length, this.#cluster.options.contextTokens);
    request.signal?.throwIfAborted();
    if (this.#closed !== undefined) throw this.#closed;
    if (this.running + this.#queue.length >= this.slots + this.#options.maxQueued)
      throw new QueueFullError(this.#queue.length);
    const sequence = new Sequence(request, this.#cluster.options.contextTokens);
    this.#queue.push(sequence);
    this.#loop ??= this.#run();
    return this.#eventsOf(sequence);
  }

  /** Takes no more requests: the next ones get this error. Those that are here go on. */
  close(error: Error): void {
    this.#closed ??= error;
  }

  /** Resolves when nothing is running or waiting. */
  async idle(): Promise<void> {
    while (this.#loop !== undefined) await this.#loop;
  }

  /** Ends what is running, with an error, after the step in flight. */
  async [Symbol.asyncDispose](): Promise<void> {
    const error = new Error('the scheduler was stopped');
    this.close(error);
    this.#failAll(error);
    await this.idle();
  }

  async *#eventsOf(sequence: Sequence): AsyncGenerator<GenerationEvent, void> {
    const { signal } = sequence.request;
    const abort = (): void => sequence.fail(asError(signal?.reason));
    signal?.addEventListener('abort', abort, { once: true });
    try {
      yield* sequence.events;
    } finally {
      signal?.removeEventListener('abort', abort);
      // The loop gives the slot to another after the step in flight.
      sequence.finished = true;
    }
  }

  async #run(): Promise<void> {
    // Requests of the same moment share the first steps.
    await Promise.resolve();
    for (;;) {
      this.#clear();
      this.#admit();
      const turn = this.#nextTurn();
      if (turn === undefined) break;
      try {
        await this.#take(turn);
      } catch (error) {
        await this.#stumble(asError(error));
      }
    }
    this.#loop = undefined;
  }

  /** Frees the slots of what has finished or was cancelled. */
  #clear(): void {
    for (const [slot, sequence] of this.#running.entries()) {
      if (sequence?.finished !== true) continue;
      this.#running[slot] = undefined;
      this.#memory.keep(slot, sequence.prefilled, this.#cluster.cacheEpoch);
    }
    for (let i = this.#queue.length - 1; i >= 0; i--) if (this.#queue[i]?.finished === true) this.#queue.splice(i, 1);
  }

  /** Short requests share the lowest free slots: batches then have few shapes, for each of which a rank builds programs. */
  #admit(): void {
    for (;;) {
      const free = [...this.#running.keys()].filter((slot) => this.#running[slot] === undefined);
      const next = free.length === 0 ? undefined : this.#queue.shift();
      if (next === undefined) return;
      const { promptIds } = next.request;
      const { fresh, onlyWhole } = tokensReadAnew(this.#cluster.plan, promptIds.length);
      const { slot, pieces } = this.#memory.take(free, promptIds, fresh, this.#cluster.cacheEpoch, onlyWhole);
      next.enter(slot, pieces);
      this.#running[slot] = next;
    }
  }

  #nextTurn(): Turn | undefined {
    const all = this.#sequences();
    const prompts = all.filter((sequence) => sequence.promptLeft > 0);
    const others = all.filter((sequence) => sequence.promptLeft === 0);
    if (all.length === 0) return undefined;
    const phase = others.length === 0 || (prompts.length > 0 && this.#lastPhase === 'decode') ? 'prefill' : 'decode';
    this.#lastPhase = phase;
    const { maxStepTokens } = this.#cluster.options;
    if (phase === 'decode') {
      // One token of each, also when a lost cache is rebuilt: blocks are faster, but move logits by up to 1 (measured with
      // q4_1), and the text would not be that of an undisturbed run.
      const sequences = others.map((sequence) => ({ sequence, work: sequence.work(1) }));
      return { phase, sequences };
    }
    const [first, ...later] = this.#byTurn(prompts);
    invariant(first !== undefined, 'a prefill turn without a prompt');
    const limit = all.length === 1 ? maxStepTokens : Math.min(maxStepTokens, sharedPieceTokens);
    const sequences = [{ sequence: first, work: first.work(limit) }];
    for (const sequence of this.#takesPromptsTogether ? later : []) {
      const left = limit - sequences.reduce((sum, { work }) => sum + work.tokens.length, 0);
      // Whole ones only: how a prompt is cut must not depend on what runs beside it.
      if (sequence.promptLeft <= left) sequences.push({ sequence, work: sequence.work(left) });
    }
    return { phase, sequences: sequences.toSorted((a, b) => (a.sequence.slot ?? 0) - (b.sequence.slot ?? 0)) };
  }

  /** Exact prefill over latent shards gathers the latents of one sequence. */
  get #takesPromptsTogether(): boolean {
    return this.#cluster.plan.latentGroups === 1;
  }

  /** Whose piece of a prompt comes first. */
  #byTurn(prompts: readonly Sequence[]): Sequence[] {
    const wantsOldest = ++this.#pieces % oldestEvery === 0;
    const rank = (sequence: Sequence): number => (wantsOldest ? sequence.arrival : sequence.promptLeft);
    return prompts.toSorted((a, b) => rank(a) - rank(b) || a.arrival - b.arrival);
  }

  async #take(turn: Turn): Promise<void> {
    const startedAt = performance.now();
    const wanted = turn.sequences.some(({ sequence, work }) => sequence.samplesAfter(work));
    const sequences = turn.sequences.map(({ sequence, work }) => ({
      slot: sequence.slot ?? 0,
      start: work.start,
      tokens: [...work.tokens],
    }));
    const want: Step['want'] = { kind: wanted ? 'last' : 'none' };
    const result = await this.#cluster.step({ phase: turn.phase, sequences, want }, this.#logits);
    if (result.logits.length > this.#logits.length) this.#logits = result.logits;
    this.#options.onStep?.(turn, result, performance.now() - startedAt);
    const { vocabSize } = this.#cluster;
    for (const [row, { sequence, work }] of turn.sequences.entries()) {
      if (sequence.finished) continue;
      const logits = sequence.samplesAfter(work)
        ? result.logits.subarray(row * vocabSize, (row + 1) * vocabSize)
        : undefined;
      sequence.advance(work, result.perRank, logits);
    }
  }

  /** After a failed step: everything is computed again on a cluster that has recovered, or ends with the error. */
  async #stumble(error: Error): Promise<void> {
    const { recover } = this.#options;
    if (recover === undefined) return this.#failAll(error);
    try {
      await recover(error);
    } catch (cause) {
      return this.#failAll(asError(cause));
    }
    for (const sequence of this.#sequences()) sequence.cached = 0;
  }

  #failAll(error: Error): void {
    for (const sequence of [...this.#sequences(), ...this.#queue]) sequence.fail(error);
  }

  #sequences(): Sequence[] {
    return this.#running.filter((sequence) => sequence !== undefined);
  }
}

/**
 * fresh: the last tokens of a prompt, which are read also where the cache holds them: one for its logits, and those that
 * decode scores from whole latents, which nothing else brings back. All of them where no rank keeps some of the latent's
 * columns. onlyWhole: with near tokens, which ranks bring back at the end of an earlier prompt and nowhere else.
 */
function tokensReadAnew(
  { scheme, exactTokens, ranks }: StepRunner['plan'],
  promptTokens: number,
): { fresh: number; onlyWhole: boolean } {
  if (ranks.some(({ sharedLatent }) => size(sharedLatent) > 0)) return { fresh: promptTokens, onlyWhole: false };
  const hasNearTokens = scheme !== 'gqa' && ranks.some(({ kvHeads }) => size(kvHeads) > 0);
  return { fresh: hasNearTokens ? 1 : Math.max(1, exactTokens.window), onlyWhole: hasNearTokens };
}
