/** `tpla serve` on the real model, as clients use it: chat, streams, characters of several tokens, stop, JSON, fairness. */
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { z } from 'zod';
import { realModelPath } from '../helpers/real-model.ts';
import { schedulerOf, serve, type Served } from '../helpers/serving.ts';

const path = realModelPath();
if (path === undefined) console.warn('serve: skipped, no model; set TPLA_MODEL or run `tpla fetch`');

describe.skipIf(path === undefined)('SmolLM2 on 2 ranks', () => {
  let served: Served;
  let client: OpenAI;
  const model = 'served';
  const greedy = { model, temperature: 0, max_tokens: 24 };
  const user = (content: string) => [{ role: 'user' as const, content }];

  beforeAll(async () => {
    served = await serve(
      ['--ranks', '2', '--slots', '4', '--max-queue', '64', '--context', '2048', '--model-name', model],
      {
        model: path!,
      },
    );
    client = served.client;
  });
  afterAll(async () => served?.[Symbol.asyncDispose]());

  async function streamed(body: Omit<OpenAI.ChatCompletionCreateParamsStreaming, 'stream'>): Promise<string> {
    let text = '';
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true }))
      text += chunk.choices[0]?.delta.content ?? '';
    return text;
  }

  test('answers a question and ends by itself', async () => {
    const answer = await client.chat.completions.create({
      ...greedy,
      max_tokens: 200,
      messages: user('What is the capital of France? Answer in one short sentence.'),
    });
    expect(answer.choices[0]?.message.content).toContain('Paris');
    expect(answer.choices[0]?.finish_reason).toBe('stop');
  });

  test('50 streams at once equal their twins that ran alone', async () => {
    const make = (i: number) => ({
      ...greedy,
      max_tokens: 6 + (i % 7),
      messages: user(`Tell me about the number ${i}.`),
    });
    const texts = await Promise.all(Array.from({ length: 50 }, (_, i) => streamed(make(i))));
    for (const [i, text] of texts.entries()) {
      const alone = await client.chat.completions.create(make(i));
      expect(text, `request ${i}`).toBe(alone.choices[0]?.message.content);
    }
    expect(new Set(texts).size).toBeGreaterThan(10);
  });

  test('a stop string is cut off wherever it lies in the tokens', async () => {
    const messages = user('List the days of the week.');
    const whole = await client.chat.completions.create({ ...greedy, max_tokens: 40, messages });
    const text = whole.choices[0]!.message.content!;
    expect(text.length).toBeGreaterThan(60);
    for (let start = 2; start < 50; start += 6) {
      for (const length of [1, 4, 11]) {
        const stop = text.slice(start, start + length);
        const expected = text.slice(0, text.indexOf(stop));
        expect(await streamed({ ...greedy, max_tokens: 40, messages, stop }), JSON.stringify(stop)).toBe(expected);
      }
    }
  });

  test('emoji and CJK come whole, also where a character is several tokens', async () => {
    const prompt = 'Repeat: 🌍🚀🐈 你好世界 🌍🚀🐈 你好世界 🌍🚀🐈 你好世界 🌍🚀🐈 你好世界 🌍';
    const request = { ...greedy, max_tokens: 48, prompt };
    const whole = await client.completions.create(request);
    const pieces: string[] = [];
    for await (const chunk of await client.completions.create({ ...request, stream: true }))
      pieces.push(chunk.choices[0]?.text ?? '');
    expect(pieces.join('')).toBe(whole.choices[0]!.text);
    expect(pieces.join('')).toMatch(/[🌍🚀🐈你好世界]/u);
    // The last character may be cut by the limit; none before it is.
    expect(pieces.slice(0, -2).join('')).not.toContain('\uFFFD');
    for (const piece of pieces) expect(piece).not.toMatch(/\p{Surrogate}/u);
  });

  test('JSON mode gives an object of the schema', async () => {
    const schema = {
      type: 'object',
      properties: {
        city: { type: 'string' },
        country: { type: 'string' },
        population: { type: 'integer' },
        coastal: { type: 'boolean' },
      },
      required: ['city', 'country', 'population', 'coastal'],
      additionalProperties: false,
    };
    const citySchema = z.strictObject({
      city: z.string(),
      country: z.string(),
      population: z.int(),
      coastal: z.boolean(),
    });
    const messages = user('Describe Paris as a JSON object.');
    const strict = await client.chat.completions.create({
      ...greedy,
      max_tokens: 200,
      messages,
      response_format: { type: 'json_schema', json_schema: { name: 'city', strict: true, schema } },
    });
    expect(strict.choices[0]?.finish_reason).toBe('stop');
    expect(citySchema.parse(JSON.parse(strict.choices[0]!.message.content!)).city).not.toBe('');
    const free = await client.chat.completions.create({
      ...greedy,
      max_tokens: 400,
      messages,
      response_format: { type: 'json_object' },
      frequency_penalty: 0.5,
    });
    if (free.choices[0]?.finish_reason === 'stop')
      expect(JSON.parse(free.choices[0].message.content!)).toBeTypeOf('object');
    else expect(free.choices[0]?.message.content).toMatch(/^\s*\{/);
  });

  test('a short prompt is answered while a long one is still read; both give what they give alone', async () => {
    const long = { ...greedy, max_tokens: 4, messages: user(`Summarise: ${'The cat sat on the mat. '.repeat(250)}`) };
    const short = { ...greedy, max_tokens: 4, messages: user('Say hello.') };
    const order: string[] = [];
    const first = async (name: string, body: typeof long): Promise<string> => {
      const text = await streamed(body);
      order.push(name);
      return text;
    };
    const texts = await Promise.all([first('long', long), first('short', short)]);
    expect(order).toEqual(['short', 'long']);
    expect(texts).toEqual([await streamed(long), await streamed(short)]);
  });

  test('a client that leaves during a long prefill frees its slot', async () => {
    const controller = new AbortController();
    const gone = client.chat.completions
      .create({ ...greedy, messages: user('The cat sat on the mat. '.repeat(250)) }, { signal: controller.signal })
      .catch((error: unknown) => error);
    while ((await schedulerOf(served.url)).running === 0);
    controller.abort();
    expect(await gone).toBeInstanceOf(OpenAI.APIUserAbortError);
    while ((await schedulerOf(served.url)).running > 0);
    const after = await fetch(`${served.url}/v1/cluster`);
    const { totals } = z.object({ totals: z.object({ prompt_tokens: z.number() }) }).parse(await after.json());
    expect(totals.prompt_tokens).toBeGreaterThan(0);
  });
});
