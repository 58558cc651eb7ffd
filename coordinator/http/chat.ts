/** POST /v1/chat/completions: messages through the model's chat template, the answer in OpenAI's shapes. */
import { randomUUID } from 'node:crypto';
import type { FastifyInstance } from 'fastify';
import type { ChatMessage } from '../../model/chat-template.ts';
import type { Tokenizer } from '../../model/tokenizer.ts';
import { answer, goneSignal, type AnsweredToken, type AnswerFormat } from './answers.ts';
import { ApiError } from './api-error.ts';
import { generationsOf } from './generation-request.ts';
import { modelName, requireCluster, requireModel, type ServerParts } from './parts.ts';
import { chatRequestSchema, parseBody, type ChatRequest, type ChatRequestMessage } from './requests.ts';

export function addChatRoute(server: FastifyInstance, parts: ServerParts): void {
  server.post('/v1/chat/completions', async (request, reply) => {
    const body = parseBody(chatRequestSchema, request.body);
    requireModel(parts, body.model);
    requireCluster(parts);
    const controller = goneSignal(reply);
    const generations = generationsOf(parts, {
      request: body,
      promptIds: parts.text.tokenizer.encode(parts.text.renderChat(templateMessages(body.messages))),
      promptParam: 'messages',
      maxTokens: body.max_completion_tokens ?? body.max_tokens,
      topLogprobs: topLogprobsOf(body),
      format: body.response_format,
      signal: controller.signal,
    });
    const includeUsage = body.stream_options?.include_usage === true;
    const result = await answer(parts, reply, generations, controller, {
      format: chatFormat(parts, body.logprobs === true, includeUsage),
      stream: body.stream === true,
      includeUsage,
    });
    return result ?? reply;
  });
}

/** Parts of a message are joined; `developer` is the newer name of `system`, which templates know. */
export function templateMessages(messages: readonly ChatRequestMessage[]): ChatMessage[] {
  return messages.map(({ role, content }) => ({
    role: role === 'developer' ? 'system' : role,
    content: typeof content === 'string' ? content : (content ?? []).map((part) => part.text).join(''),
  }));
}

function topLogprobsOf({ logprobs, top_logprobs: top }: ChatRequest): number | undefined {
  if (logprobs === true) return top ?? 0;
  if (top === undefined || top === null) return undefined;
  throw new ApiError(400, 'top_logprobs: needs logprobs: true', { param: 'top_logprobs' });
}

function chatFormat(parts: ServerParts, withLogprobs: boolean, includeUsage: boolean): AnswerFormat {
  const head = { id: `chatcmpl-${randomUUID()}`, created: Math.floor(Date.now() / 1000), model: modelName(parts) };
  const fingerprint = { system_fingerprint: null };
  const logprobs = (tokens: readonly AnsweredToken[]): object | null =>
    withLogprobs ? { content: tokens.map((token) => describe(parts.text.tokenizer, token)), refusal: null } : null;
  const chunk = (choices: readonly object[], usage: object | null = null): object => ({
    ...head,
    object: 'chat.completion.chunk',
    ...fingerprint,
    choices,
    ...(includeUsage ? { usage } : {}),
  });
  const part = (index: number, delta: object, tokens: readonly AnsweredToken[], reason: string | null): object =>
    chunk([{ index, delta, logprobs: tokens.length === 0 ? null : logprobs(tokens), finish_reason: reason }]);
  return {
    whole: (answers, usage) => ({
      ...head,
      object: 'chat.completion',
      ...fingerprint,
      choices: answers.map(({ text, tokens, finishReason }, index) => ({
        index,
        message: { role: 'assistant', content: text, refusal: null },
        logprobs: logprobs(tokens),
        finish_reason: finishReason,
      })),
      usage,
    }),
    opening: (index) => part(index, { role: 'assistant', content: '' }, [], null),
    piece: ({ index, text, tokens }) => part(index, { content: text }, tokens, null),
    closing: ({ index, tokens }, reason) => part(index, {}, tokens, reason),
    usage: (usage) => chunk([], usage),
  };
}

function describe(tokenizer: Tokenizer, { tokenId, logprobs }: AnsweredToken): object {
  const entry = (id: number, logprob: number): object => ({
    token: tokenizer.tokenText(id),
    logprob,
    bytes: [...tokenizer.tokenBytes(id)],
  });
  return {
    ...entry(tokenId, logprobs?.logprob ?? 0),
    top_logprobs: (logprobs?.top ?? []).map(({ tokenId: id, logprob }) => entry(id, logprob)),
  };
}
