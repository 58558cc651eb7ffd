/** What the model's tokenizer and chat template do, without the model: /tokenize, /detokenize, /apply-template. */
import type { FastifyInstance } from 'fastify';
import { ApiError } from './api-error.ts';
import { templateMessages } from './chat.ts';
import type { ServerParts } from './parts.ts';
import { applyTemplateRequestSchema, detokenizeRequestSchema, parseBody, tokenizeRequestSchema } from './requests.ts';

export function addTextRoutes(server: FastifyInstance, { text, supervisor }: ServerParts): void {
  server.post('/tokenize', (request) => {
    const body = parseBody(tokenizeRequestSchema, request.body);
    const content = body.content ?? body.prompt;
    if (typeof content !== 'string' && !Array.isArray(body.messages))
      throw new ApiError(400, 'content: missing; give content (a text) or messages', { param: 'content' });
    const addsSpecial = body.add_special ?? body.add_special_tokens ?? false;
    const tokens =
      typeof content === 'string'
        ? addsSpecial
          ? text.encodeRaw(content)
          : text.encode(content)
        : text.tokenizer.encode(text.renderChat(templateMessages(body.messages ?? [])));
    return { tokens, count: tokens.length, max_model_len: supervisor.options.contextTokens };
  });

  server.post('/detokenize', (request) => {
    const { tokens } = parseBody(detokenizeRequestSchema, request.body);
    const content = text.tokenizer.decode(tokens, { skipSpecial: false });
    return { content, prompt: content };
  });

  server.post('/apply-template', (request) => {
    const { messages } = parseBody(applyTemplateRequestSchema, request.body);
    return { prompt: text.renderChat(templateMessages(messages)) };
  });
}
