/** What the numbers of a check mean for the user: what stands in the way, and what to change. Pure arithmetic. */
import type { Machine } from '../machine.ts';
import { formatBytes } from '../table.ts';
import type { LinkCheck } from './check-links.ts';
import type { RankCheck, RankSpeed } from './check-ranks.ts';

/** Between ranks of one machine; slower than this, sums cost more than sharding saves on small models. */
const slowSumUs = 50;
/** Waiting of one generated token for sums between hosts: more is felt. */
const slowTokenMs = 20;
/** Reading a prompt at less than this is felt. */
const slowPromptTokensPerSecond = 500;

export interface Verdict {
  readonly ready: boolean;
  /** Each says what was found and what to do. */
  readonly advice: readonly string[];
}

/** @param check undefined: no ranks could be started; `missing` says why */
export function judge(machine: Machine, check: RankCheck | undefined, missing: string): Verdict {
  const lacks: string[] = [];
  if (machine.zeromq === undefined) lacks.push('the ZeroMQ binding is missing: run `npm ci`');
  if (machine.ggml === undefined)
    lacks.push('the ggml libraries are missing: run `npm ci`, or compute with --backend gpujs, which is slower');
  if (!machine.curve)
    lacks.push(
      'this ZeroMQ cannot encrypt (no CURVE): ranks on other machines need --allow-no-keys and a safe network',
    );
  if (check === undefined) return { ready: false, advice: [...lacks, missing] };
  const full = memoryAdvice(check);
  return {
    ready: machine.zeromq !== undefined && full.length === 0,
    advice: [...lacks, ...full, ...coreAdvice(machine, check), ...sumAdvice(machine, check), ...speedAdvice(check)],
  };
}

/** The weights are loaded already: what the cache will take has to be free on each host. */
function memoryAdvice({ ranks }: RankCheck): string[] {
  return [...new Set(ranks.map(({ host }) => host))].flatMap((host) => {
    const own = ranks.filter((rank) => rank.host === host);
    const needed = own.reduce((sum, rank) => sum + rank.fullCacheBytes, 0);
    const free = Math.min(...own.map((rank) => rank.freeMemoryBytes));
    if (needed <= free) return [];
    const names = own.map(({ rank }) => rank).join(', ');
    return [
      `${host}: a full cache of rank ${names} needs ${formatBytes(needed)} beside the weights, ${formatBytes(free)} are free: lower --context or cache.slots, or put ranks on other machines`,
    ];
  });
}

function coreAdvice(machine: Machine, { ranks, threads }: RankCheck): string[] {
  const local = ranks.filter(({ host }) => host === machine.host).length;
  const busy = local * threads;
  if (busy <= machine.cores) return [];
  return [
    `${local} ranks with ${threads} threads each want ${busy} cores, this machine has ${machine.cores}: fewer ranks or threads are faster`,
  ];
}

function sumAdvice(machine: Machine, check: RankCheck): string[] {
  const { ranks, short, transport, links } = check;
  const between = links.filter(({ from }) => from !== null);
  if (between.length > 0) return linkAdvice(check, between);
  const isHere = ranks.length > 1 && ranks.every(({ host }) => host === machine.host);
  if (!isHere || short.p50Us <= slowSumUs) return [];
  const change =
    transport === 'shared memory'
      ? 'something else uses the cores'
      : '--transport shm is faster between ranks of one machine';
  return [`a short sum over ${transport} takes ${short.p50Us.toFixed(0)} us here: ${change}`];
}

/** Two sums per layer: each waits for the slowest link; the ring sends 2 (N - 1) / N of a hidden state through each link. */
function linkAdvice({ numLayers, hiddenDim, ranks }: RankCheck, links: readonly LinkCheck[]): string[] {
  const advice: string[] = [];
  const [late] = [...links].sort((a, b) => b.latencyUs - a.latencyUs);
  const tokenMs = (2 * numLayers * (late?.latencyUs ?? 0)) / 1000;
  if (late !== undefined && tokenMs > slowTokenMs)
    advice.push(
      `${nameOf(late, ranks)} takes ${late.latencyUs.toFixed(0)} us one way, and each generated token waits for it ${2 * numLayers} times, ` +
        `${tokenMs.toFixed(0)} ms in all: use a faster network, or fewer machines`,
    );
  const [thin] = [...links].sort((a, b) => a.megabytesPerSecond - b.megabytesPerSecond);
  const share = (2 * (ranks.length - 1)) / ranks.length;
  const tokensPerSecond = ((thin?.megabytesPerSecond ?? Infinity) * 1e6) / (2 * numLayers * hiddenDim * 4 * share);
  if (thin !== undefined && tokensPerSecond < slowPromptTokensPerSecond)
    advice.push(
      `${nameOf(thin, ranks)} carries ${thin.megabytesPerSecond.toFixed(0)} MB/s: prompts are read at ${tokensPerSecond.toFixed(0)} tokens/s at most; use a faster network, or fewer machines`,
    );
  return advice;
}

function nameOf({ from, to }: LinkCheck, ranks: readonly RankSpeed[]): string {
  const named = (rank: number): string => `rank ${rank} (${ranks[rank]?.host ?? 'unknown'})`;
  return `the link from ${from === null ? 'the coordinator' : named(from)} to ${named(to)}`;
}

function speedAdvice({ ranks }: RankCheck): string[] {
  const slowest = Math.min(...ranks.map((rank) => rank.gigabytesPerSecond));
  const fastest = Math.max(...ranks.map((rank) => rank.gigabytesPerSecond));
  if (fastest <= 1.5 * slowest) return [];
  return [
    `ranks differ in speed (${slowest.toFixed(1)} to ${fastest.toFixed(1)} GB/s) and wait for the slowest: give it a smaller \`share\` in the cluster file`,
  ];
}
