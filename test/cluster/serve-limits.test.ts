/** What `tpla serve` refuses and how it ends: keys, full queues, lost ranks, SIGTERM, impossible addresses. */
import OpenAI from 'openai';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import { Sandbox } from '../helpers/program.ts';
import { chatModel, schedulerOf, serve } from '../helpers/serving.ts';

const greedy = { model: 'chat-stories', temperature: 0, prompt: 'Once upon a time' };
const errorSchema = z.object({
  error: z.object({ message: z.string(), type: z.string(), code: z.string().nullable() }),
});
const healthSchema = z.object({
  status: z.string(),
  error: z.string().optional(),
  ranks: z.array(z.object({ rank: z.number(), state: z.string(), restarts: z.number(), error: z.string().optional() })),
});

describe('an API key', () => {
  test('is asked for by every route but health and the page', async () => {
    await using served = await serve(['--ranks', '1', '--cors-origin', 'https://app.example'], {
      env: { TPLA_API_KEY: 'secret-1' },
      apiKey: 'secret-1',
    });
    await expect(served.client.completions.create({ ...greedy, max_tokens: 2 })).resolves.toMatchObject({
      object: 'text_completion',
    });
    for (const path of ['/v1/models', '/v1/cluster', '/metrics']) {
      const refused = await fetch(`${served.url}${path}`, { headers: { authorization: 'Bearer secret-2' } });
      expect(refused.status).toBe(401);
      expect(refused.headers.get('www-authenticate')).toBe('Bearer');
      expect(errorSchema.parse(await refused.json()).error).toMatchObject({
        message: 'wrong API key',
        code: 'invalid_api_key',
      });
    }
    const missing = await fetch(`${served.url}/v1/completions`, { method: 'POST', body: '{}' });
    expect(errorSchema.parse(await missing.json()).error.message).toBe(
      'no API key; send the header `Authorization: Bearer KEY`',
    );
    expect((await fetch(`${served.url}/health`)).status).toBe(200);
    const page = await fetch(served.url);
    expect(page.status).toBe(200);
    expect(page.headers.get('content-security-policy')).toContain("default-src 'none'");
    const preflight = await fetch(`${served.url}/v1/completions`, { method: 'OPTIONS' });
    expect(preflight.status).toBe(204);
    expect(preflight.headers.get('access-control-allow-origin')).toBe('https://app.example');
  });

  test('is required for addresses that other machines reach', async () => {
    using sandbox = new Sandbox();
    const args = ['serve', '--model', chatModel(sandbox), '--listen'];
    const { code, stderr } = await sandbox.run([...args, '0.0.0.0:0']);
    expect(code).toBe(2);
    expect(stderr).toContain(
      '0.0.0.0 can be reached from other machines and there is no API key; set TPLA_API_KEY, listen on 127.0.0.1, or say --allow-no-api-key',
    );
    const bad = await sandbox.run([...args, 'here']);
    expect(bad.code).toBe(2);
    expect(bad.stderr).toContain('--listen: expected host:port such as 127.0.0.1:8080 or [::1]:8080, got "here"');
  });
});

describe('pages of other origins', () => {
  test('may call only where a setting names them', async () => {
    await using served = await serve(['--ranks', '1', '--cors-origin', 'https://chat.example']);
    const preflight = await fetch(`${served.url}/v1/chat/completions`, {
      method: 'OPTIONS',
      headers: { origin: 'https://chat.example', 'access-control-request-method': 'POST' },
    });
    expect(preflight.status).toBe(204);
    expect(preflight.headers.get('access-control-allow-headers')).toContain('authorization');
    const streamed = await fetch(`${served.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ prompt: 'Once', max_tokens: 2, stream: true }),
    });
    expect(streamed.headers.get('access-control-allow-origin')).toBe('https://chat.example');
    await streamed.text();
  });
});

describe('a full queue', () => {
  test('is answered with 429 and when to come again', async () => {
    await using served = await serve(['--ranks', '1', '--slots', '1', '--max-queue', '1']);
    const controller = new AbortController();
    const long = { ...greedy, max_tokens: 480 };
    const busy = [0, 1].map(() =>
      served.client.completions.create(long, { signal: controller.signal }).catch((error: unknown) => error),
    );
    for (;;) {
      const { running, queued } = await schedulerOf(served.url);
      if (running + queued === 2) break;
    }
    const refused: unknown = await served.client.completions.create(long).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(OpenAI.RateLimitError);
    expect(refused).toMatchObject({ status: 429, code: 'queue_full' });
    if (!(refused instanceof OpenAI.RateLimitError)) return;
    expect(Number(refused.headers?.get('retry-after'))).toBeGreaterThanOrEqual(1);
    controller.abort();
    await Promise.all(busy);
  });
});

describe('a rank that is killed', () => {
  test('is started again, and the answer goes on as if nothing had happened', async () => {
    await using served = await serve(['--ranks', '2']);
    const request = { ...greedy, max_tokens: 90 };
    const expected = await served.client.completions.create(request);
    let text = '';
    let killed = false;
    for await (const chunk of await served.client.completions.create({ ...request, stream: true })) {
      text += chunk.choices[0]?.text ?? '';
      if (killed || text.length < 40) continue;
      process.kill(served.ranks[1]!.pid, 'SIGKILL');
      killed = true;
    }
    expect(text).toBe(expected.choices[0]!.text);
    const health = healthSchema.parse(await (await fetch(`${served.url}/health`)).json());
    expect(health).toMatchObject({ status: 'ok', ranks: [{ rank: 0 }, { rank: 1, restarts: 1 }] });
  });

  test('beyond the ceiling of restarts: 503 naming the rank, for health and for requests; the program stays', async () => {
    using files = new Sandbox();
    const file = `${files.folder}/cluster.yaml`;
    const { writeFileSync } = await import('node:fs');
    writeFileSync(file, 'model: default\nranks: [{}, {}]\nfaults: { restarts: 0 }\n');
    await using served = await serve(['--config', file]);
    const running = served.client.completions.create({ ...greedy, max_tokens: 400 }).catch((error: unknown) => error);
    while ((await schedulerOf(served.url)).running === 0);
    process.kill(served.ranks[1]!.pid, 'SIGKILL');
    const killed = expect.stringContaining(`rank 1 (process ${served.ranks[1]!.pid}) was killed by SIGKILL`);
    expect(await running).toMatchObject({ status: 503, code: 'rank_failed', message: killed });
    const health = await fetch(`${served.url}/health`);
    expect(health.status).toBe(503);
    expect(healthSchema.parse(await health.json())).toMatchObject({
      status: 'failed',
      error: killed,
      ranks: [{ rank: 0 }, { rank: 1, state: 'lost', error: killed }],
    });
    await expect(served.client.completions.create(greedy)).rejects.toMatchObject({ status: 503, message: killed });
    const { code } = await served.stop();
    expect(code).toBe(0);
  });
});

describe('SIGTERM', () => {
  test('lets a running stream end, refuses new requests, leaves nothing behind', async () => {
    await using served = await serve(['--ranks', '2']);
    const stream = await served.client.completions.create({ ...greedy, max_tokens: 120, stream: true });
    let pieces = 0;
    let reason: string | null = null;
    let refusedStatus: number | undefined;
    let finished: ReturnType<typeof served.stop> | undefined;
    for await (const chunk of stream) {
      reason = chunk.choices[0]?.finish_reason ?? reason;
      if (++pieces !== 5) continue;
      finished = served.stop();
      // The signal needs a moment to arrive; whoever asks after it is sent away.
      for (;;) {
        const answer = await fetch(`${served.url}/health`);
        refusedStatus = answer.status;
        if (answer.status === 503) break;
      }
    }
    expect(reason).toBe('length');
    expect(refusedStatus).toBe(503);
    const { code, stderr } = await finished!;
    expect(code).toBe(0);
    expect(stderr).toContain('waiting up to 30 s for 1 running requests');
    expect(served.sandbox.leftovers()).toEqual([]);
    expect(served.sandbox.ranks().size).toBe(0);
  });
});
