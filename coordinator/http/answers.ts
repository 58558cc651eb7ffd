/**
 * Runs the generations of one request and writes what they give: whole, or as a stream of events. The shapes of chat
 * and of plain completions are given by a format. Read next: chat.ts and completions.ts, the two formats.
 */
import type { FastifyReply } from 'fastify';
import type { FinishReason, Generation, GenerationEvent, TokenLogprobs, Usage } from '../generation.ts';
import { toApiError } from './api-error.ts';
import { EventStream } from './event-stream.ts';
import type { ServerParts } from './parts.ts';
import { retryAfterSeconds } from './retry-after.ts';

export interface AnsweredToken {
  readonly tokenId: number;
  readonly logprobs: TokenLogprobs | undefined;
}

export interface Answer {
  readonly text: string;
  readonly tokens: readonly AnsweredToken[];
  readonly finishReason: FinishReason;
  readonly usage: Usage;
}

/** Part of one choice of a streamed answer. */
export interface AnswerPiece {
  readonly index: number;
  readonly text: string;
  /** Tokens since the piece before. */
  readonly tokens: readonly AnsweredToken[];
}

export interface AnswerFormat {
  /** The whole answer, not streamed. */
  readonly whole: (answers: readonly Answer[], usage: TokenCounts) => object;
  /** Sent before the first piece of a choice; undefined: nothing is. */
  readonly opening: (index: number) => object | undefined;
  readonly piece: (piece: AnswerPiece) => object;
  readonly closing: (piece: AnswerPiece, reason: FinishReason) => object;
  readonly usage: (usage: TokenCounts) => object;
}

export interface TokenCounts {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  /** Prompt tokens that the cache held from an earlier request. */
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

export interface AnswerOptions {
  readonly format: AnswerFormat;
  readonly stream: boolean;
  readonly includeUsage: boolean;
}

/** A signal that is aborted when the client goes away before it has the whole answer. */
export function goneSignal(reply: FastifyReply): AbortController {
  const controller = new AbortController();
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) controller.abort(new ClientGone());
  });
  return controller;
}

/** Nobody reads its status; metrics count it as nginx does. */
class ClientGone extends Error {
  override readonly name = 'ClientGone';
  readonly statusCode = 499;

  constructor() {
    super('the client closed the connection');
  }
}

/**
 * @param generations one for each choice, all with the signal of `controller`
 * @returns the body to send; undefined when the answer was streamed
 * @throws what ends a generation, before any event was sent
 */
export async function answer(
  parts: ServerParts,
  reply: FastifyReply,
  generations: readonly Generation[],
  controller: AbortController,
  options: AnswerOptions,
): Promise<object | undefined> {
  const stream = new EventStream(reply);
  try {
    const runs = generations.map((generation) => parts.scheduler.submit(generation));
    if (!options.stream) {
      const answers = await Promise.all(runs.map(collect));
      answers.forEach(({ finishReason, usage }) => parts.metrics.generation(finishReason, usage));
      return options.format.whole(answers, countTokens(generations, answers));
    }
    const answers = await Promise.all(runs.map((run, index) => streamChoice(run, index, stream, options.format)));
    answers.forEach(({ finishReason, usage }) => parts.metrics.generation(finishReason, usage));
    if (options.includeUsage) await stream.send(options.format.usage(countTokens(generations, answers)));
    await stream.end();
    return undefined;
  } catch (error) {
    // The other choices have nobody who reads them.
    const isGone = controller.signal.aborted;
    controller.abort(error);
    parts.metrics.generation(isGone ? 'cancelled' : 'failed', undefined);
    if (!stream.begun) throw error;
    await stream.fail(toApiError(error, retryAfterSeconds(parts)));
    return undefined;
  }
}

async function collect(events: AsyncIterable<GenerationEvent>): Promise<Answer> {
  const tokens: AnsweredToken[] = [];
  let text = '';
  for await (const event of events) {
    text += event.text;
    if (event.kind === 'end') return { text, tokens, finishReason: event.finishReason, usage: event.usage };
    tokens.push(event);
  }
  throw new Error('a generation ended without its last event');
}

async function streamChoice(
  events: AsyncIterable<GenerationEvent>,
  index: number,
  stream: EventStream,
  format: AnswerFormat,
): Promise<Answer> {
  const tokens: AnsweredToken[] = [];
  let text = '';
  let pending: AnsweredToken[] = [];
  let isOpen = false;
  for await (const event of events) {
    const opening = isOpen ? undefined : format.opening(index);
    isOpen = true;
    if (opening !== undefined) await stream.send(opening);
    text += event.text;
    if (event.kind === 'token') {
      tokens.push(event);
      pending.push(event);
    }
    // Tokens that complete no character wait for the one that does.
    if (event.text !== '') {
      await stream.send(format.piece({ index, text: event.text, tokens: pending }));
      pending = [];
    }
    if (event.kind !== 'end') continue;
    await stream.send(format.closing({ index, text: '', tokens: pending }, event.finishReason));
    return { text, tokens, finishReason: event.finishReason, usage: event.usage };
  }
  throw new Error('a generation ended without its last event');
}

/** Choices of one prompt share it: it is counted once. */
function countTokens(generations: readonly Generation[], answers: readonly Answer[]): TokenCounts {
  const prompts = new Set(generations.map(({ promptIds }) => promptIds));
  const prompt = [...prompts].reduce((sum, ids) => sum + ids.length, 0);
  const completion = answers.reduce((sum, { tokens }) => sum + tokens.length, 0);
  const cached = Math.min(
    prompt,
    answers.reduce((sum, { usage }) => sum + usage.reusedTokens, 0),
  );
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: cached },
  };
}
