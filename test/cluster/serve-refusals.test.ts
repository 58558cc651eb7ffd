/** `tpla serve` and requests that it must refuse, and clients that leave before their answer. */
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import {
  chatModelName as model,
  greedyChat as greedy,
  saidByUser as user,
  serve,
  schedulerOf,
  type Served,
} from '../helpers/serving.ts';

let served: Served;
let client: OpenAI;

beforeAll(async () => {
  served = await serve(['--ranks', '2', '--slots', '4', '--max-queue', '64']);
  client = served.client;
});
afterAll(async () => served[Symbol.asyncDispose]());

const refusalSchema = z.object({
  error: z.object({
    message: z.string(),
    type: z.string(),
    param: z.string().nullable(),
    code: z.string().nullable(),
  }),
});

/** The status and the body's error, of a request that is refused. */
async function refusal(path: string, body: unknown, init: RequestInit = {}) {
  const response = await fetch(`${served.url}${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: typeof body === 'string' ? body : JSON.stringify(body),
    ...init,
  });
  return { status: response.status, ...refusalSchema.parse(await response.json()).error };
}

describe('refusals', () => {
  test('name the field and what was expected', async () => {
    const chat = '/v1/chat/completions';
    expect(await refusal(chat, { messages: [] })).toMatchObject({
      status: 400,
      message: 'messages: expected at least one message',
    });
    expect(await refusal(chat, { messages: user('x'), temperature: 'hot' })).toEqual({
      status: 400,
      type: 'invalid_request_error',
      message: 'temperature: expected number, received string',
      param: 'temperature',
      code: 'invalid_type',
    });
    expect(await refusal(chat, { messages: [{ role: 'robot', content: 'x' }] })).toMatchObject({
      param: 'messages[0].role',
    });
    expect(await refusal(chat, { messages: user('x'), tools: [{ type: 'function' }] })).toMatchObject({
      param: 'tools',
      message: 'tools: tools are not supported by this server; leave the field out',
    });
    expect(await refusal('/v1/completions', { prompt: 7 })).toMatchObject({
      param: 'prompt',
      message: 'prompt: expected a text, a list of texts, a list of token ids, or a list of such lists',
    });
    expect(await refusal('/v1/completions', { prompt: [99999] })).toMatchObject({
      message: 'prompt: token 99999 is not below the vocabulary size 512',
    });
    expect(await refusal(chat, { messages: user('x'), logit_bias: { 512: 1 } })).toMatchObject({
      status: 400,
      message: 'logit_bias: token 512 is not below the vocabulary size 512',
    });
    const image = { type: 'image_url', image_url: { url: 'data:image/png;base64,' } };
    expect(await refusal(chat, { messages: [{ role: 'user', content: [image] }] })).toMatchObject({
      param: 'messages[0].content[0].type',
      message: 'messages[0].content[0].type: image_url parts are not supported by this server; send text parts',
    });
    const get = await fetch(`${served.url}${chat}`);
    expect(get.status).toBe(405);
    expect(get.headers.get('allow')).toBe('POST');
    expect(await refusal(chat, '{broken')).toMatchObject({ status: 400 });
    expect(await refusal('/v1/nothing', {})).toMatchObject({ status: 404, code: 'unknown_url' });
  });

  test('fields of other services are let through', async () => {
    const extra: OpenAI.ChatCompletionCreateParamsNonStreaming = {
      ...greedy,
      messages: user('Once'),
      user: 'me',
      store: false,
      metadata: {},
      service_tier: 'auto',
    };
    await expect(client.chat.completions.create(extra)).resolves.toMatchObject({ object: 'chat.completion' });
  });

  test('a prompt that is too long: 400 with the three numbers', async () => {
    const error: unknown = await client.completions
      .create({ model, prompt: 'dog '.repeat(300), max_tokens: 100 })
      .catch((refused: unknown) => refused);
    expect(error).toBeInstanceOf(OpenAI.BadRequestError);
    expect(error).toMatchObject({
      code: 'context_length_exceeded',
      param: 'prompt',
      message: expect.stringMatching(
        /maximum context length is 512 tokens; you requested \d+ \(\d+ in the prompt, 100 in the answer\)/,
      ),
    });
  });

  test('an unknown model: 404 naming those there are', async () => {
    await expect(client.completions.create({ ...greedy, model: 'gpt-4o', prompt: 'x' })).rejects.toThrow(
      '404 model "gpt-4o": not served here; use chat-stories',
    );
    expect((await client.models.list()).data.map(({ id }) => id)).toEqual([model]);
    await expect(client.models.retrieve('nothing')).rejects.toBeInstanceOf(OpenAI.NotFoundError);
  });

  test('a body that is too large: 413; text/plain: 415', async () => {
    expect(await refusal('/v1/completions', { prompt: 'x'.repeat(9_000_000) })).toMatchObject({ status: 413 });
    const plain = await fetch(`${served.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'text/plain' },
      body: '{}',
    });
    expect(plain.status).toBe(415);
    expect(plain.headers.get('access-control-allow-origin')).toBeNull();
  });
});

describe('clients that leave', () => {
  test.each([true, false])('give their slots back (streamed: %s)', async (stream) => {
    const clients = Array.from({ length: 6 }, (_, i) => {
      const controller = new AbortController();
      const messages = user(i === 0 ? 'dog '.repeat(200) : 'Once');
      const response = fetch(`${served.url}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ ...greedy, max_tokens: i === 0 ? 100 : 400, messages, stream }),
        signal: controller.signal,
      });
      return { controller, ended: response.then((answer) => answer.text()).catch(() => 'aborted') };
    });
    while ((await schedulerOf(served.url)).running < 4);
    clients.forEach(({ controller }) => controller.abort());
    await Promise.all(clients.map(({ ended }) => ended));
    for (;;) {
      const { running, queued } = await schedulerOf(served.url);
      if (running + queued === 0) break;
    }
  });
});
