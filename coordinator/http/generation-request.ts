/**
 * From a request's fields to generations: prompt, limits, sampling, form. Everything that can be refused is refused
 * here, before a slot is asked for. Read next: answers.ts, which runs them.
 */
import { randomInt } from 'node:crypto';
import type { Generation } from '../generation.ts';
import type { Sampling } from '../sampler.ts';
import { ApiError } from './api-error.ts';
import type { ServerParts } from './parts.ts';
import type { GenerationRequest, ResponseFormat } from './requests.ts';
import { constraintOf } from './response-format.ts';

export interface GenerationWishes {
  readonly request: GenerationRequest;
  readonly promptIds: readonly number[];
  /** `messages` or `prompt`, for refusals. */
  readonly promptParam: string;
  readonly maxTokens: number | null | undefined;
  readonly topLogprobs: number | undefined;
  readonly format: ResponseFormat | null | undefined;
  readonly signal: AbortSignal;
}

/** @returns [n], one for each choice, with seeds that differ  @throws ApiError 400 */
export function generationsOf(parts: ServerParts, wishes: GenerationWishes): Generation[] {
  const { request, promptIds, topLogprobs, signal } = wishes;
  const room = roomFor(parts, wishes);
  const seed = request.seed ?? randomInt(2 ** 32);
  const endIds = request.ignore_eos === true ? [] : parts.text.endIds;
  return Array.from({ length: request.n ?? 1 }, (_, choice) => ({
    promptIds,
    sampling: samplingOf(request),
    seed: (seed + choice) >>> 0,
    maxTokens: wishes.maxTokens ?? room,
    stop: stopsOf(request),
    endIds,
    text: parts.text.newStream(),
    logitBias: biasOf(parts, request),
    frequencyPenalty: request.frequency_penalty ?? 0,
    presencePenalty: request.presence_penalty ?? 0,
    topLogprobs,
    constraint: constraintOf(parts.text.tokenizer, wishes.format),
    signal,
  }));
}

/** OpenAI's defaults: the model's own distribution. */
function samplingOf(request: GenerationRequest): Sampling {
  return {
    temperature: request.temperature ?? 1,
    topP: request.top_p ?? 1,
    topK: Math.max(0, request.top_k ?? 0),
    minP: request.min_p ?? 0,
    repeatPenalty: request.repeat_penalty ?? request.repetition_penalty ?? 1,
  };
}

function stopsOf({ stop }: GenerationRequest): string[] {
  return (typeof stop === 'string' ? [stop] : (stop ?? [])).filter((text) => text !== '');
}

/** @throws ApiError 400 for a token beyond the vocabulary */
function biasOf(
  { supervisor: { vocabSize } }: ServerParts,
  { logit_bias: bias }: GenerationRequest,
): ReadonlyMap<number, number> | undefined {
  if (bias === undefined || bias === null || Object.keys(bias).length === 0) return undefined;
  return new Map(
    Object.entries(bias).map(([token, value]) => {
      if (Number(token) < vocabSize) return [Number(token), value];
      throw new ApiError(400, `logit_bias: token ${token} is not below the vocabulary size ${vocabSize}`, {
        param: 'logit_bias',
        code: 'invalid_value',
      });
    }),
  );
}

/** @returns tokens that the context has left for the answer  @throws ApiError with the three numbers */
function roomFor(parts: ServerParts, { promptIds, promptParam, maxTokens }: GenerationWishes): number {
  const { contextTokens } = parts.supervisor.options;
  if (promptIds.length === 0) throw new ApiError(400, `${promptParam}: no tokens; give a text`, { param: promptParam });
  const wanted = maxTokens ?? 1;
  const room = contextTokens - promptIds.length;
  if (wanted <= room) return room;
  throw new ApiError(
    400,
    `this model's maximum context length is ${contextTokens} tokens; you requested ${promptIds.length + wanted} ` +
      `(${promptIds.length} in the ${promptParam}, ${wanted} in the answer); shorten one of them`,
    { param: promptParam, code: 'context_length_exceeded' },
  );
}
