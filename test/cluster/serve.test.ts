/** `tpla serve` with the official OpenAI client: shapes, streams, many requests at once, other routes. */
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import {
  chatModelName as model,
  greedyChat as greedy,
  saidByUser as user,
  serve,
  type Served,
} from '../helpers/serving.ts';

let served: Served;
let client: OpenAI;

beforeAll(async () => {
  served = await serve(['--ranks', '2', '--slots', '4', '--max-queue', '64']);
  client = served.client;
});
afterAll(async () => served[Symbol.asyncDispose]());

const chunkSchema = z.object({
  id: z.string(),
  object: z.string(),
  usage: z.object({ completion_tokens: z.number() }).nullable(),
  choices: z.array(
    z.object({
      index: z.number(),
      delta: z.record(z.string(), z.string()),
      logprobs: z.unknown(),
      finish_reason: z.string().nullable(),
    }),
  ),
});
const petSchema = z.strictObject({ kind: z.enum(['cat', 'dog']), age: z.int(), name: z.literal('Tom').nullable() });
const clusterSchema = z.looseObject({
  ranks: z.array(z.looseObject({ totals: z.looseObject({ compute_ms: z.number() }) })),
});

const post = async (path: string, body: object): Promise<unknown> => {
  const response = await fetch(`${served.url}${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  return response.json();
};

const tokensSchema = z.object({ tokens: z.array(z.number()), count: z.number() });
const tokensOf = async (content: string, addSpecial = false): Promise<number[]> =>
  tokensSchema.parse(await post('/tokenize', { content, add_special: addSpecial })).tokens;

describe('chat completions', () => {
  test('one answer, with usage', async () => {
    const completion = await client.chat.completions.create({ ...greedy, messages: user('Once upon a time') });
    expect(completion).toMatchObject({ object: 'chat.completion', model });
    expect(completion.id).toMatch(/^chatcmpl-/);
    const [choice] = completion.choices;
    expect(choice).toMatchObject({ index: 0, finish_reason: 'length', logprobs: null, message: { role: 'assistant' } });
    expect(choice?.message.content).toMatch(/^[A-Z].{20}/);
    const { usage } = completion;
    expect(usage?.completion_tokens).toBe(24);
    expect(usage?.total_tokens).toBe(usage!.prompt_tokens + 24);
  });

  test('a stream: role, pieces with null finish reasons, the reason, usage, [DONE]', async () => {
    const body = {
      ...greedy,
      messages: user('Once upon a time'),
      stream: true,
      stream_options: { include_usage: true },
    };
    const response = await fetch(`${served.url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
    expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8');
    const events = (await response.text()).split('\n\n').filter((event) => event !== '');
    expect(events.every((event) => event.startsWith('data: '))).toBe(true);
    expect(events.pop()).toBe('data: [DONE]');
    const chunks = events.map((event) => chunkSchema.parse(JSON.parse(event.slice('data: '.length))));
    expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
    expect(chunks[0]!.choices).toEqual([
      { index: 0, delta: { role: 'assistant', content: '' }, logprobs: null, finish_reason: null },
    ]);
    const usage = chunks.pop()!;
    expect(usage.choices).toEqual([]);
    expect(usage.usage?.completion_tokens).toBe(24);
    const last = chunks.pop()!;
    expect(last.choices).toEqual([{ index: 0, delta: {}, logprobs: null, finish_reason: 'length' }]);
    for (const chunk of chunks) expect(chunk).toMatchObject({ object: 'chat.completion.chunk', usage: null });
    for (const chunk of chunks.slice(1)) {
      expect(Object.keys(chunk.choices[0]!.delta)).toEqual(['content']);
      expect(chunk.choices[0]!.finish_reason).toBeNull();
    }
  });

  test('50 streams at once equal their twins that are not streamed', { timeout: 60_000 }, async () => {
    const starts = [
      'Once upon a time',
      'The dog',
      'Tom and Lily',
      'One day, a bird',
      'A big red ball',
      'Mom said',
      'It was',
    ];
    const prompts = Array.from({ length: 50 }, (_, i) => `${starts[i % 7]!} ${'very '.repeat(i % 5)}`);
    const make = (i: number) => ({ ...greedy, max_tokens: 3 + (i % 4), messages: user(prompts[i]!) });
    const streamed = await Promise.all(
      prompts.map(async (_, i) => {
        let text = '';
        for await (const chunk of await client.chat.completions.create({ ...make(i), stream: true }))
          text += chunk.choices[0]?.delta.content ?? '';
        return text;
      }),
    );
    const whole = [];
    for (const i of prompts.keys()) {
      const answer = await client.chat.completions.create(make(i));
      whole.push(answer.choices[0]?.message.content);
    }
    expect(streamed).toEqual(whole);
    expect(new Set(streamed).size).toBeGreaterThan(20);
  });

  test('n choices, each with its own seed, reproducible', async () => {
    const ask = () =>
      client.chat.completions.create({ model, messages: user('The'), n: 3, seed: 7, temperature: 1, max_tokens: 16 });
    const [first, second] = [await ask(), await ask()];
    const texts = first.choices.map(({ message }) => message.content);
    expect(new Set(texts).size).toBe(3);
    expect(second.choices.map(({ message }) => message.content)).toEqual(texts);
    expect(first.usage?.completion_tokens).toBe(48);
  });

  test('logprobs name each token with its alternatives', async () => {
    const { choices } = await client.chat.completions.create({
      ...greedy,
      max_completion_tokens: 5,
      messages: user('Once upon'),
      logprobs: true,
      top_logprobs: 2,
    });
    const content = choices[0]?.logprobs?.content ?? [];
    expect(content).toHaveLength(5);
    for (const token of content) {
      expect(token.top_logprobs).toHaveLength(2);
      expect(token.top_logprobs[0]).toEqual({ token: token.token, logprob: token.logprob, bytes: token.bytes });
      expect(Buffer.from(token.bytes!).toString()).toBe(token.token);
    }
    expect(content.map(({ token }) => token).join('')).toContain(choices[0]!.message.content!.trim());
  });

  test('logit_bias forbids a token', async () => {
    const plain = await client.chat.completions.create({ ...greedy, messages: user('Once upon'), max_tokens: 1 });
    const tokens = await tokensOf(plain.choices[0]!.message.content!);
    const bias = Object.fromEntries(tokens.map((token: number) => [String(token), -100]));
    const other = await client.chat.completions.create({
      ...greedy,
      messages: user('Once upon'),
      max_tokens: 1,
      logit_bias: bias,
    });
    expect(other.choices[0]?.message.content).not.toBe(plain.choices[0]?.message.content);
  });

  test.each([
    ['json_object', { type: 'json_object' as const }],
    [
      'json_schema',
      {
        type: 'json_schema' as const,
        json_schema: {
          name: 'pet',
          strict: true,
          schema: {
            type: 'object',
            properties: {
              kind: { enum: ['cat', 'dog'] },
              age: { type: 'integer' },
              name: { anyOf: [{ const: 'Tom' }, { type: 'null' }] },
            },
            required: ['kind', 'age', 'name'],
            additionalProperties: false,
          },
        },
      },
    ],
  ])('response_format %s gives JSON whatever the model would say', async (name, format) => {
    const answers = await client.chat.completions.create({
      model,
      messages: user('Once upon a time'),
      response_format: format,
      n: 2,
      seed: 3,
      max_tokens: 100,
      // This model tells stories and would not end a string by itself.
      logit_bias: Object.fromEntries((await tokensOf('"}')).slice(-2).map((token, i) => [String(token), 20 * (i + 1)])),
    });
    for (const { message, finish_reason: reason } of answers.choices) {
      expect(reason).toBe('stop');
      const value: unknown = JSON.parse(message.content!);
      expect(value).toBeTypeOf('object');
      if (name === 'json_object') continue;
      expect(Object.keys(petSchema.parse(value))).toEqual(['kind', 'age', 'name']);
    }
  });
});

describe('completions', () => {
  test('texts and token ids are continued as they are', async () => {
    const text = await client.completions.create({ ...greedy, prompt: ['Once upon a time', 'The dog'] });
    expect(text.choices.map(({ index }) => index)).toEqual([0, 1]);
    const tokens = await tokensOf('The dog', true);
    const ids = await client.completions.create({ ...greedy, prompt: tokens, echo: true });
    expect(ids.choices[0]?.text).toBe(`The dog${text.choices[1]?.text}`);
  });

  test('logprobs in the older shape, streamed in the same pieces', async () => {
    const request = { ...greedy, max_tokens: 6, prompt: 'Once upon a time', logprobs: 2 };
    const whole = await client.completions.create(request);
    const logprobs = whole.choices[0]!.logprobs!;
    expect(logprobs.tokens!.join('')).toBe(whole.choices[0]!.text);
    expect(logprobs.text_offset![1]).toBe(logprobs.tokens![0]!.length);
    const tokens = [];
    for await (const chunk of await client.completions.create({ ...request, stream: true }))
      tokens.push(...(chunk.choices[0]?.logprobs?.tokens ?? []));
    expect(tokens).toEqual(logprobs.tokens);
  });

  test('a stop string is never shown, however it is cut into tokens, streamed or not', async () => {
    const { choices } = await client.completions.create({ ...greedy, max_tokens: 40, prompt: 'Once upon a time' });
    const text = choices[0]!.text;
    for (const [start, length] of [
      [1, 1],
      [3, 7],
      [10, 3],
      [14, 12],
      [25, 2],
    ] as const) {
      const stop = text.slice(start, start + length);
      const expected = text.slice(0, text.indexOf(stop));
      const request = { ...greedy, max_tokens: 40, prompt: 'Once upon a time', stop: [stop, 'never said'] };
      const whole = await client.completions.create(request);
      expect(whole.choices[0]).toMatchObject({ text: expected, finish_reason: 'stop' });
      let streamed = '';
      for await (const chunk of await client.completions.create({ ...request, stream: true }))
        streamed += chunk.choices[0]?.text ?? '';
      expect(streamed).toBe(expected);
    }
  });
});

describe('other routes', () => {
  test('tokenize, detokenize and apply-template are each other’s inverse', async () => {
    const { tokens, count } = tokensSchema.parse(await post('/tokenize', { content: 'Hello 🌍 你好' }));
    expect(count).toBe(tokens.length);
    expect(await post('/detokenize', { tokens })).toMatchObject({ content: 'Hello 🌍 你好' });
    expect(
      await post('/apply-template', {
        messages: [{ role: 'system', content: 'Be kind' }, ...user('Hi')],
      }),
    ).toEqual({ prompt: '<s>Be kind. Hi ' });
    expect(await post('/tokenize', { messages: user('Hi') })).toMatchObject({ tokens: await tokensOf('<s>Hi ') });
  });

  test('health, cluster and metrics tell of both ranks', async () => {
    const health = await fetch(`${served.url}/health`);
    expect(health.status).toBe(200);
    expect(await health.json()).toMatchObject({
      status: 'ok',
      ranks: served.ranks.map(({ rank, pid }) => ({ rank, pid, state: 'ok', restarts: 0 })),
    });
    const cluster = clusterSchema.parse(await (await fetch(`${served.url}/v1/cluster`)).json());
    expect(cluster).toMatchObject({ state: 'ok', scheme: 'gqa', scheduler: { slots: 4 } });
    expect(cluster.ranks).toHaveLength(2);
    expect(cluster.ranks[1]!.totals.compute_ms).toBeGreaterThan(0);
    const metrics = await (await fetch(`${served.url}/metrics`)).text();
    expect(metrics).toMatch(/^tpla_rank_up\{rank="1"\} 1$/m);
    expect(metrics).toMatch(/^tpla_generations_total\{finish_reason="length"\} \d+$/m);
  });
});
