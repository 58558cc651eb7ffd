/**
 * What do requests that run together gain, and does each get its share? Asks a running `tpla serve` (or several, in turn:
 * builds to compare) for the same answers one after another and all at once. Prints tokens per second of both, their
 * ratio, and how much longer than the fastest the slowest of the requests took.
 *   node dist/scripts/bench/concurrent.js --url http://127.0.0.1:8080,http://127.0.0.1:8081 --requests 16 --tokens 64
 */
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { spreadOf } from '../../coordinator/bench/report.ts';

const answerSchema = z.object({ usage: z.object({ completion_tokens: z.number() }) });

/** Prompts of equal length, so that a fair server ends equal requests together. */
const subjects = [
  'sea',
  'sun',
  'sky',
  'oak',
  'fox',
  'owl',
  'bee',
  'car',
  'hat',
  'map',
  'ice',
  'tea',
  'art',
  'law',
  'war',
  'egg',
];

interface Round {
  /** Tokens per second. */
  readonly alone: number;
  readonly together: number;
  /** Time of the slowest request over that of the fastest. */
  readonly slowest: number;
}

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      url: { type: 'string', default: 'http://127.0.0.1:8080' },
      requests: { type: 'string', default: '16' },
      tokens: { type: 'string', default: '64' },
      rounds: { type: 'string', default: '5' },
    },
  });
  const servers = flags.url.split(',').map((url) => ({ url, rounds: [] as Round[] }));
  const [requests, tokens] = [Number(flags.requests), Number(flags.tokens)];
  for (const { url } of servers) await askAll(url, requests, tokens); // builds programs and warms caches
  for (let round = 0; round < Number(flags.rounds); round++)
    for (const { url, rounds } of servers) rounds.push(await measure(url, requests, tokens));
  for (const { url, rounds } of servers) report(url, rounds, flags);
}

async function measure(url: string, requests: number, tokens: number): Promise<Round> {
  const alone: number[] = [];
  for (let i = 0; i < 4; i++) {
    const { count, ms } = await ask(url, i, tokens);
    alone.push((1000 * count) / ms);
  }
  const startedAt = performance.now();
  const answers = await askAll(url, requests, tokens);
  const total = answers.reduce((sum, { count }) => sum + count, 0);
  const rates = spreadOf(answers.map(({ count, ms }) => ms / count));
  return {
    alone: spreadOf(alone).median,
    together: (1000 * total) / (performance.now() - startedAt),
    slowest: rates.max / rates.min,
  };
}

function askAll(url: string, requests: number, tokens: number): Promise<{ count: number; ms: number }[]> {
  return Promise.all(Array.from({ length: requests }, (_, i) => ask(url, i, tokens)));
}

async function ask(url: string, index: number, tokens: number): Promise<{ count: number; ms: number }> {
  const startedAt = performance.now();
  const prompt = `This is a long story about the ${subjects[index % subjects.length]}. Once upon a time`;
  const response = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'default', prompt, max_tokens: tokens, temperature: 0 }),
  });
  const body: unknown = await response.json();
  if (!response.ok) throw new Error(`${url}: ${response.status} ${JSON.stringify(body)}`);
  return { count: answerSchema.parse(body).usage.completion_tokens, ms: performance.now() - startedAt };
}

function report(url: string, rounds: readonly Round[], flags: object): void {
  const [alone, together] = [spreadOf(rounds.map((r) => r.alone)), spreadOf(rounds.map((r) => r.together))];
  const gain = spreadOf(rounds.map((r) => r.together / r.alone));
  const slowest = spreadOf(rounds.map((r) => r.slowest));
  console.log(
    `${url}: alone ${alone.median.toFixed(1)} tokens/s, together ${together.median.toFixed(1)}, ` +
      `${gain.median.toFixed(2)} x (${gain.min.toFixed(2)} to ${gain.max.toFixed(2)}), slowest request ${slowest.median.toFixed(2)} x the fastest`,
  );
  console.log(JSON.stringify({ bench: 'concurrent', ...flags, url, alone, together, gain, slowest }));
}

await main();
