/**
 * Does the cost of a token grow as attention does, and nothing else with it? Decodes at several contexts and compares
 * the rank's milliseconds per position with those of attention's operation alone, over caches that lie in memory as the
 * model's do. Then generates in a loop, again and again from the start of the context, and follows the ranks' memory.
 * Prints rows, a plot in text and a JSON line.
 *   node dist/scripts/bench/decode-slope.js --model FILE --contexts 64,1024,2048,4096 --loop 10000
 */
import { parseArgs } from 'node:util';
import type { ClusterConfig } from '../../config/cluster.ts';
import { loadClusterConfig } from '../../config/load.ts';
import type { ModelConfig } from '../../config/model-config.ts';
import { openCheckpoint } from '../../model/open.ts';
import { spreadOf } from '../../coordinator/bench/report.ts';
import { Cluster } from '../../coordinator/cluster.ts';
import { createGgmlKernels } from '../../worker/kernels/ggml/ggml.ts';
import { allocateValues, headsOfRows, headsOfValues } from '../../worker/value-cache.ts';

const stepsOfContext = 24;
const rounds = 5;

/** At one context: milliseconds of a token, and of all layers' attention alone. Least of the rounds. */
interface Point {
  readonly context: number;
  readonly tokenMs: number;
  readonly kernelMs: number;
}

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      model: { type: 'string', default: '' },
      contexts: { type: 'string', default: '64,1024,2048,4096' },
      loop: { type: 'string', default: '10000' },
    },
  });
  if (flags.model === '') throw new Error('--model: expected a checkpoint with key and value caches');
  const contexts = flags.contexts.split(',').map(Number);
  const context = Math.max(...contexts) + 2 * stepsOfContext;
  const config = await loadClusterConfig({ file: undefined, flags: { model: flags.model, ranks: 1, context } });
  await using checkpoint = await openCheckpoint(flags.model);
  await using cluster = await Cluster.start({ checkpoint, config, log: () => undefined });
  const points = await slope(cluster, checkpoint.config, contexts);
  const memory = await loop(cluster, Number(flags.loop), config);
  report(points, memory, flags);
}

/** Both in turn, so that a busy minute does not fall on one of them alone. */
async function slope(cluster: Cluster, model: ModelConfig, contexts: readonly number[]): Promise<Point[]> {
  const points = new Map<number, Point>();
  using kernel = attentionOf(model, Math.max(...contexts));
  for (let round = 0; round < rounds; round++)
    for (const context of contexts) {
      const { tokenMs = Infinity, kernelMs = Infinity } = points.get(context) ?? {};
      const token = Math.min(tokenMs, await timeOfToken(cluster, context, round === 0));
      points.set(context, { context, tokenMs: token, kernelMs: Math.min(kernelMs, kernel.run(context)) });
    }
  return [...points.values()];
}

/** What the rank computes for a token with so many before it, in milliseconds. @param fills whether they are yet to be read */
async function timeOfToken(cluster: Cluster, context: number, fills: boolean): Promise<number> {
  if (fills) {
    const { maxStepTokens } = cluster.options;
    for (let start = 0; start < context; start += maxStepTokens) {
      const tokens = tokensFrom(start, Math.min(maxStepTokens, context - start), cluster.vocabSize);
      await cluster.step({ phase: 'prefill', sequences: [{ slot: 0, start, tokens }], want: { kind: 'none' } });
    }
  }
  const times: number[] = [];
  for (let i = 0; i < stepsOfContext; i++) times.push((await decode(cluster, context + i)).computeMs);
  return Math.min(...times);
}

async function decode(cluster: Cluster, start: number) {
  const sequences = [{ slot: 0, start, tokens: tokensFrom(start, 1, cluster.vocabSize) }];
  const [reply] = (await cluster.step({ phase: 'decode', sequences, want: { kind: 'last' } })).perRank;
  if (reply === undefined) throw new Error('a step without a reply');
  return reply;
}

interface AttentionKernel extends Disposable {
  /** Milliseconds for all layers. */
  run(context: number): number;
}

/** Only the operation that attention.ts uses, once per layer over f16 caches of its own. */
function attentionOf({ attention, numLayers, numHeads }: ModelConfig, longest: number): AttentionKernel {
  if (attention.kind !== 'gqa') throw new Error('--model: has latents; this script times attention with heads');
  const { headDim, numKvHeads, scoreScale: scale, scoreSoftcap: softcap } = attention;
  const kernels = createGgmlKernels({ threads: 1, device: '' });
  const rowsPerSlot = Math.ceil(longest / 64) * 64 + 64;
  const width = numKvHeads * headDim;
  const caches = Array.from({ length: numLayers }, () => ({
    keys: kernels.allocate('f16', [rowsPerSlot, width], 'any'),
    values: allocateValues(kernels, 'f16', rowsPerSlot, width),
  }));
  const q = kernels.allocate('f32', [numHeads, 1, headDim]);
  return {
    run(context) {
      const rows = { cacheStart: 0, cacheRows: Math.ceil((context + stepsOfContext) / 64) * 64 };
      const mask = kernels.allocate('f32', [1, rows.cacheRows]);
      using programs = kernels.compile(
        caches.map(({ keys, values }) => (ops) => {
          const seen = headsOfValues(ops, values, rowsPerSlot, rows, width, headDim);
          return [ops.attend(q, headsOfRows(ops, keys, rows, headDim), seen, mask, { scale, softcap })];
        }),
      );
      const times = Array.from({ length: stepsOfContext }, () => {
        const startedAt = performance.now();
        for (let layer = 0; layer < numLayers; layer++) programs.run(layer);
        return performance.now() - startedAt;
      });
      kernels.release([mask]);
      return Math.min(...times);
    },
    [Symbol.dispose]: () => kernels[Symbol.dispose](),
  };
}

/** Resident and most bytes of the rank after each tenth of the tokens. */
async function loop(cluster: Cluster, tokens: number, { cache }: ClusterConfig) {
  const length = Math.min(512, cache.contextTokens - 1);
  const memory: { tokens: number; rssBytes: number; peakRssBytes: number }[] = [];
  for (let token = 1; token <= tokens; token++) {
    const { rssBytes, peakRssBytes } = await decode(cluster, token % length);
    if (token % Math.ceil(tokens / 10) === 0) memory.push({ tokens: token, rssBytes, peakRssBytes });
  }
  return memory;
}

function tokensFrom(start: number, length: number, vocabSize: number): number[] {
  return Array.from({ length }, (_, i) => (7919 * (start + i + 1)) % vocabSize);
}

function report(points: readonly Point[], memory: Awaited<ReturnType<typeof loop>>, flags: object): void {
  const most = Math.max(...points.map(({ tokenMs }) => tokenMs));
  for (const { context, tokenMs, kernelMs } of points) {
    const bar = (ms: number, mark: string): string => mark.repeat(Math.round((50 * ms) / most));
    console.log(
      `${String(context).padStart(6)} tokens: ${tokenMs.toFixed(2).padStart(6)} ms, attention ${kernelMs.toFixed(2).padStart(6)}  ` +
        `${bar(kernelMs, '#')}${bar(tokenMs - kernelMs, '.')}`,
    );
  }
  const slopes = { token: slopeOf(points, 'tokenMs'), kernel: slopeOf(points, 'kernelMs') };
  console.log(
    `per 1000 tokens of context: ${slopes.token.toFixed(2)} ms of a token, ${slopes.kernel.toFixed(2)} of attention alone, ` +
      `${(slopes.token / slopes.kernel).toFixed(2)} x`,
  );
  const [first] = memory;
  const growth = memory.map(({ rssBytes }) => (rssBytes - (first?.rssBytes ?? 0)) / 2 ** 20);
  const spread = spreadOf(growth);
  console.log(
    `memory after each tenth, MB: ${memory.map(({ rssBytes }) => (rssBytes / 2 ** 20).toFixed(0)).join(' ')}; ` +
      `from ${spread.min.toFixed(1)} to ${spread.max.toFixed(1)} of the first; peak ${((memory.at(-1)?.peakRssBytes ?? 0) / 2 ** 20).toFixed(0)}`,
  );
  console.log(JSON.stringify({ bench: 'decode-slope', ...flags, points, slopes, memory }));
}

/** Least squares, milliseconds per 1000 tokens. */
function slopeOf(points: readonly Point[], of: 'tokenMs' | 'kernelMs'): number {
  const mean = (pick: (point: Point) => number): number => points.reduce((sum, p) => sum + pick(p), 0) / points.length;
  const [x, y] = [mean((p) => p.context), mean((p) => p[of])];
  return (1000 * mean((p) => (p.context - x) * (p[of] - y))) / mean((p) => (p.context - x) ** 2);
}

await main();
