/** Continuous batching on real ranks: many generations give what each gives alone; slots, queue and cancellation. */
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadClusterConfig } from '../../config/load.ts';
import { ConfigError } from '../../config/errors.ts';
import { Cluster } from '../../coordinator/cluster.ts';
import type { Generation, GenerationEvent } from '../../coordinator/generation.ts';
import { QueueFullError, Scheduler, type StepRunner, type Turn } from '../../coordinator/scheduler.ts';
import { openText, type ModelText } from '../../coordinator/text.ts';
import type { Checkpoint } from '../../model/checkpoint.ts';
import { openCheckpoint } from '../../model/open.ts';
import { startCluster } from '../helpers/cluster.ts';
import { goldenFolder } from '../helpers/golden.ts';
import { seededRandom } from '../helpers/random.ts';
import { tinyVocab, writeTinyMla } from '../helpers/tiny-mla.ts';

const model = join(goldenFolder, 'stories260K');
let checkpoint: Checkpoint;
let cluster: Cluster;
let text: ModelText;

beforeAll(async () => {
  const config = await loadClusterConfig({ file: undefined, flags: { model, ranks: 2, context: 512 } });
  checkpoint = await openCheckpoint(model);
  text = await openText(model);
  cluster = await Cluster.start({
    checkpoint,
    config: { ...config, cache: { ...config.cache, slots: 4 } },
    log: () => undefined,
  });
});
afterAll(async () => {
  await cluster[Symbol.asyncDispose]();
  await checkpoint[Symbol.asyncDispose]();
});

const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, repeatPenalty: 1 };

function request(prompt: string, changes: Partial<Generation> = {}): Generation {
  return {
    promptIds: text.encodeRaw(prompt),
    sampling: greedy,
    seed: 1,
    maxTokens: 24,
    stop: [],
    endIds: text.endIds,
    text: text.newStream(),
    ...changes,
  };
}

interface Collected {
  readonly text: string;
  readonly ids: number[];
  readonly end: string;
  /** Prompt tokens that were in the cache. */
  readonly reused: number;
}

async function collect(events: AsyncIterable<GenerationEvent>): Promise<Collected> {
  const all = { text: '', ids: [] as number[], end: '', reused: 0 };
  for await (const event of events) {
    all.text += event.text;
    if (event.kind === 'token') all.ids.push(event.tokenId);
    else [all.end, all.reused] = [event.finishReason, event.usage.reusedTokens];
  }
  return all;
}

const prompts = [
  'Once upon a time',
  'The little dog',
  'Tom and Lily went to the park. They saw a big red ball and',
  'A',
  'One day, a girl named Sue found',
  'The sun was',
];

describe('scheduler', () => {
  test('gives each of many generations the text that it has alone, greedy and sampled', async () => {
    const sampling = { temperature: 0.8, topK: 40, topP: 0.95, minP: 0.05, repeatPenalty: 1.1 };
    const make = (): Generation[] =>
      prompts.map((prompt, i) => request(prompt, i % 2 === 0 ? {} : { sampling, seed: 1000 + i }));
    await using alone = new Scheduler(cluster, { maxQueued: 0 });
    const expected = [];
    for (const one of make()) expected.push(await collect(alone.submit(one)));
    const turns: Turn[] = [];
    await using together = new Scheduler(cluster, { maxQueued: 8, onStep: (turn) => turns.push(turn) });
    const actual = await Promise.all(make().map((one) => collect(together.submit(one))));
    expect(actual).toEqual(expected);
    expect(Math.max(...turns.map((turn) => turn.sequences.length))).toBe(4);
    expect(new Set(expected.map((one) => one.text)).size).toBe(prompts.length);
  });

  test('runs a long prompt in pieces and gives a short one its first token between them', async () => {
    await using scheduler = new Scheduler(cluster, { maxQueued: 8 });
    const order: string[] = [];
    const first = async (name: string, events: AsyncIterable<GenerationEvent>): Promise<void> => {
      for await (const event of events) {
        if (event.kind === 'token' && !order.includes(name)) order.push(name);
      }
    };
    const long = request('The cat sat on the mat. '.repeat(30), { maxTokens: 2 });
    expect(long.promptIds.length).toBeGreaterThan(256);
    await Promise.all([
      first('long', scheduler.submit(long)),
      first('short', scheduler.submit(request('A', { maxTokens: 2 }))),
    ]);
    expect(order).toEqual(['short', 'long']);
  });

  test('refuses what the queue has no room for, and what does not fit the context', async () => {
    await using scheduler = new Scheduler(cluster, { maxQueued: 1 });
    const running = Array.from({ length: 5 }, () => collect(scheduler.submit(request('Once'))));
    expect(() => scheduler.submit(request('Once'))).toThrow(QueueFullError);
    expect(() => scheduler.submit(request('cat '.repeat(600)))).toThrow(ConfigError);
    await Promise.all(running);
    await expect(collect(scheduler.submit(request('Once')))).resolves.toMatchObject({ end: 'length' });
  });

  test('gives the slot back within one step of a cancellation, in prefill, in decode and in the queue', async () => {
    const controllers = Array.from({ length: 6 }, () => new AbortController());
    const seen: number[] = [];
    let cancelled = -1;
    await using scheduler = new Scheduler(cluster, {
      maxQueued: 4,
      onStep: ({ sequences }) => {
        seen.push(sequences.length);
        if (seen.length !== 7) return;
        cancelled = seen.length;
        controllers.forEach((controller, i) => {
          if (i !== 3) controller.abort(new Error(`gone ${i}`));
        });
      },
    });
    const runs = controllers.map(({ signal }, i) =>
      collect(scheduler.submit(request(i === 2 ? 'dog '.repeat(200) : 'Once', { signal, maxTokens: 40 }))),
    );
    const results = await Promise.allSettled(runs);
    expect(results.map(({ status }) => status)).toEqual([
      'rejected',
      'rejected',
      'rejected',
      'fulfilled',
      'rejected',
      'rejected',
    ]);
    expect(results[4]).toMatchObject({ reason: { message: 'gone 4' } });
    expect(cancelled).toBe(7);
    expect(new Set(seen.slice(7))).toEqual(new Set([1]));
    expect([scheduler.running, scheduler.queued]).toEqual([0, 0]);
  });

  test('a reader that leaves ends its generation', async () => {
    await using scheduler = new Scheduler(cluster, { maxQueued: 1 });
    for await (const event of scheduler.submit(request('Once', { maxTokens: 400 }))) if (event.kind === 'token') break;
    await scheduler.idle();
    expect(scheduler.running).toBe(0);
  });

  test('reports log-probabilities, bias and the end by a stop string', async () => {
    await using scheduler = new Scheduler(cluster, { maxQueued: 1 });
    const events: GenerationEvent[] = [];
    for await (const event of scheduler.submit(request('Once upon a', { topLogprobs: 3, maxTokens: 4 })))
      events.push(event);
    for (const event of events.filter((event) => event.kind === 'token')) {
      expect(event.logprobs?.top).toHaveLength(3);
      expect(event.logprobs?.top[0]).toEqual({ tokenId: event.tokenId, logprob: event.logprobs?.logprob });
      const sum = event.logprobs!.top.reduce((total, { logprob }) => total + Math.exp(logprob), 0);
      expect(sum).toBeGreaterThan(0);
      expect(sum).toBeLessThanOrEqual(1 + 1e-9);
    }
    const plain = await collect(scheduler.submit(request('Once upon a', { maxTokens: 4 })));
    const banned = plain.ids[0]!;
    const biased = await collect(
      scheduler.submit(request('Once upon a', { maxTokens: 4, logitBias: new Map([[banned, -100]]) })),
    );
    expect(biased.ids).not.toContain(banned);
    const stopped = await collect(scheduler.submit(request('Once upon a time', { stop: ['there'], maxTokens: 40 })));
    expect(stopped).toMatchObject({ end: 'stop' });
    expect(stopped.text).not.toContain('there');
  });

  test('computes everything again when a lost cache is recovered, without losing a token', async () => {
    await using plain = new Scheduler(cluster, { maxQueued: 1 });
    const expected = await collect(plain.submit(request('Once upon a time', { maxTokens: 60 })));
    let steps = 0;
    const failing = {
      options: cluster.options,
      plan: cluster.plan,
      cacheEpoch: 0,
      vocabSize: cluster.vocabSize,
      step: (step: Parameters<Cluster['step']>[0]) => {
        if (++steps === 30) return Promise.reject(new Error('rank 1 was killed'));
        return cluster.step(step);
      },
    };
    const causes: string[] = [];
    await using scheduler = new Scheduler(failing, {
      maxQueued: 1,
      recover: (error) => {
        causes.push(error.message);
        return Promise.resolve();
      },
    });
    const actual = await collect(scheduler.submit(request('Once upon a time', { maxTokens: 60 })));
    expect(causes).toEqual(['rank 1 was killed']);
    expect(actual).toEqual(expected);
  });
});

describe.each(['mla', 'tpla', 'tpla-exact', 'dcp', 'gla'])('scheme %s', (scheme) => {
  test('a prompt that begins as an earlier one goes on where that ended, with the same answer', async () => {
    await using mla = await writeTinyMla();
    await using started = await startCluster(mla.path, { ranks: 2, scheme, context: 512, slots: 2 });
    const ids = (length: number): number[] => Array.from({ length }, (_, t) => (t * 7 + (t >> 4)) % tinyVocab);
    const make = (promptIds: number[]): Generation => ({
      ...request('A'),
      promptIds,
      endIds: [],
      maxTokens: 12,
      text: text.newStream(),
    });
    const runs = async (runner: StepRunner, prompts: number[][]) => {
      await using scheduler = new Scheduler(runner, { maxQueued: 1 });
      const answers = [];
      for (const prompt of prompts) answers.push(await collect(scheduler.submit(make(prompt))));
      return answers;
    };
    const other = ids(150).reverse();
    const [expected] = await runs(started.cluster, [ids(290)]);
    const [, , continued] = await runs(started.cluster, [ids(100), other, ids(290)]);
    expect(continued?.reused).toBe(100);
    expect(continued?.ids).toEqual(expected?.ids);
    // After a loss nothing of the cache may be taken for granted.
    let cacheEpoch = 0;
    const { cluster } = started;
    const losing: StepRunner = {
      options: cluster.options,
      plan: cluster.plan,
      vocabSize: cluster.vocabSize,
      get cacheEpoch() {
        return cacheEpoch++;
      },
      step: (step) => cluster.step(step),
    };
    const [, again] = await runs(losing, [ids(100), ids(290)]);
    expect(again).toEqual({ ...expected, reused: 0 });
  });

  test('a batch of latent caches gives what each gives alone, with prompts read in pieces', async () => {
    await using mla = await writeTinyMla();
    await using started = await startCluster(mla.path, { ranks: 2, scheme, context: 256, slots: 3 });
    const random = seededRandom(11);
    const lengths = [9, 130, 33, 1, 70];
    const make = (): Generation[] =>
      lengths.map((length, i) => ({
        promptIds: Array.from({ length }, (_, t) => (t * (7 + i) + i) % tinyVocab),
        sampling: greedy,
        seed: i,
        maxTokens: 12,
        stop: [],
        endIds: [],
        text: { push: String, end: () => '' },
      }));
    const alone = new Scheduler(started.cluster, { maxQueued: 0 });
    const expected = [];
    for (const one of make()) expected.push(await collect(alone.submit(one)));
    const together = new Scheduler(started.cluster, { maxQueued: 8 });
    const order = make()
      .map((one, i) => ({ one, i, at: random() }))
      .sort((a, b) => a.at - b.at);
    const actual = await Promise.all(
      order.map(async ({ one, i }) => [i, await collect(together.submit(one))] as const),
    );
    expect(actual.sort(([a], [b]) => a - b).map(([, result]) => result)).toEqual(expected);
  });
});
