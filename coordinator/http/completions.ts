/** POST /v1/completions: texts or token ids continued as they are, the answer in OpenAI's older shapes. */
import { randomUUID } from 'node:crypto';
import type { FastifyInstance } from 'fastify';
import { answer, goneSignal, type AnsweredToken, type AnswerFormat } from './answers.ts';
import { ApiError } from './api-error.ts';
import { generationsOf } from './generation-request.ts';
import { modelName, requireCluster, requireModel, type ServerParts } from './parts.ts';
import { completionRequestSchema, parseBody, type CompletionRequest } from './requests.ts';

export function addCompletionRoute(server: FastifyInstance, parts: ServerParts): void {
  server.post('/v1/completions', async (request, reply) => {
    const body = parseBody(completionRequestSchema, request.body);
    requireModel(parts, body.model);
    requireCluster(parts);
    requireSupported(body);
    const controller = goneSignal(reply);
    const generations = promptsOf(parts, body.prompt).flatMap((promptIds) =>
      generationsOf(parts, {
        request: body,
        promptIds,
        promptParam: 'prompt',
        maxTokens: body.max_tokens ?? defaultMaxTokens,
        topLogprobs: body.logprobs ?? undefined,
        format: body.response_format,
        signal: controller.signal,
      }),
    );
    const prefixes = generations.map(({ promptIds }) =>
      body.echo === true ? parts.text.tokenizer.decode(promptIds, { skipSpecial: true }) : '',
    );
    const includeUsage = body.stream_options?.include_usage === true;
    const result = await answer(parts, reply, generations, controller, {
      format: completionFormat(parts, prefixes, typeof body.logprobs === 'number', includeUsage),
      stream: body.stream === true,
      includeUsage,
    });
    return result ?? reply;
  });
}

/** OpenAI's, for this route alone. */
const defaultMaxTokens = 16;

function requireSupported({ echo, logprobs, best_of: bestOf, n }: CompletionRequest): void {
  if (echo === true && typeof logprobs === 'number')
    throw new ApiError(400, 'echo: log-probabilities of the prompt are not supported; leave out echo or logprobs', {
      param: 'echo',
    });
  if (bestOf !== undefined && bestOf !== null && bestOf !== (n ?? 1))
    throw new ApiError(400, `best_of: expected n (${n ?? 1}), got ${bestOf}; other choices are not ranked here`, {
      param: 'best_of',
    });
}

/** @returns token ids of each prompt @throws ApiError 400 for an id beyond the vocabulary */
function promptsOf({ text, supervisor }: ServerParts, prompt: CompletionRequest['prompt']): readonly number[][] {
  if (typeof prompt === 'string') return [text.encodeRaw(prompt)];
  const texts = prompt.filter((part) => typeof part === 'string');
  if (texts.length > 0) return texts.map((part) => text.encodeRaw(part));
  const flat = prompt.filter((part) => typeof part === 'number');
  const lists = flat.length > 0 ? [flat] : prompt.filter((part) => typeof part === 'object');
  for (const id of lists.flat())
    if (id >= supervisor.vocabSize)
      throw new ApiError(400, `prompt: token ${id} is not below the vocabulary size ${supervisor.vocabSize}`, {
        param: 'prompt',
      });
  return lists;
}

/** @param prefixes text that comes before each choice */
function completionFormat(
  parts: ServerParts,
  prefixes: readonly string[],
  withLogprobs: boolean,
  includeUsage: boolean,
): AnswerFormat {
  const head = {
    id: `cmpl-${randomUUID()}`,
    object: 'text_completion',
    created: Math.floor(Date.now() / 1000),
    model: modelName(parts),
  };
  /** Characters of each choice that have been sent. */
  const sent = prefixes.map((prefix) => prefix.length);
  const logprobs = (index: number, tokens: readonly AnsweredToken[]): object | null => {
    if (!withLogprobs) return null;
    const described = describe(parts, tokens, sent[index] ?? 0);
    sent[index] = described.end;
    return described.logprobs;
  };
  const chunk = (choices: readonly object[], usage: object | null = null): object => ({
    ...head,
    choices,
    ...(includeUsage ? { usage } : {}),
  });
  const part = (index: number, text: string, tokens: readonly AnsweredToken[], reason: string | null): object =>
    chunk([{ index, text, logprobs: tokens.length === 0 ? null : logprobs(index, tokens), finish_reason: reason }]);
  return {
    whole: (answers, usage) => ({
      ...head,
      choices: answers.map(({ text, tokens, finishReason }, index) => ({
        index,
        text: (prefixes[index] ?? '') + text,
        logprobs: logprobs(index, tokens),
        finish_reason: finishReason,
      })),
      usage,
    }),
    opening: (index) => (prefixes[index] === '' ? undefined : part(index, prefixes[index] ?? '', [], null)),
    piece: ({ index, text, tokens }) => part(index, text, tokens, null),
    closing: ({ index, text, tokens }, reason) => part(index, text, tokens, reason),
    usage: (usage) => chunk([], usage),
  };
}

/** @param start characters before the first of these tokens */
function describe(
  { text: { tokenizer } }: ServerParts,
  tokens: readonly AnsweredToken[],
  start: number,
): { logprobs: object; end: number } {
  let end = start;
  const offsets = tokens.map(({ tokenId }) => {
    const offset = end;
    end += tokenizer.tokenText(tokenId).length;
    return offset;
  });
  return {
    end,
    logprobs: {
      tokens: tokens.map(({ tokenId }) => tokenizer.tokenText(tokenId)),
      token_logprobs: tokens.map(({ logprobs }) => logprobs?.logprob ?? null),
      top_logprobs: tokens.map(({ logprobs }) =>
        Object.fromEntries((logprobs?.top ?? []).map((one) => [tokenizer.tokenText(one.tokenId), one.logprob])),
      ),
      text_offset: offsets,
    },
  };
}
