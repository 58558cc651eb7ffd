/** What the numbers of a check mean for the user: what stands in the way, and what to change. Pure arithmetic. */
import type { Machine } from '../machine.ts';
import { formatBytes } from '../table.ts';
import type { RankCheck } from './check-ranks.ts';

/** What a rank's process needs beside weights and cache: the program, ggml and its scratch memory. */
const processBytes = 130e6;
/** Between ranks of one machine; slower than this, sums cost more than sharding saves on small models. */
const slowSumUs = 50;

export interface Verdict {
  readonly ready: boolean;
  /** Each says what was found and what to do. */
  readonly advice: readonly string[];
}

/** @param check undefined: no model is here to start ranks with; `missing` says so */
export function judge(machine: Machine, check: RankCheck | undefined, missing: string): Verdict {
  const advice: string[] = [];
  if (machine.zeromq === undefined) advice.push('the ZeroMQ binding is missing: run `npm ci`');
  if (machine.ggml === undefined)
    advice.push('the ggml libraries are missing: run `npm ci`, or compute with --backend gpujs, which is slower');
  if (check === undefined) return { ready: false, advice: [...advice, missing] };
  const local = check.ranks.filter(({ host }) => host === machine.host);
  const busy = local.length * check.threads;
  if (busy > machine.cores)
    advice.push(
      `${local.length} ranks with ${check.threads} threads each want ${busy} cores, this machine has ${machine.cores}: fewer ranks or threads are faster`,
    );
  const needed = local.reduce((sum, rank) => sum + rank.weightBytes + rank.fullCacheBytes + processBytes, 0);
  if (needed > machine.memoryBytes)
    advice.push(
      `a full cache needs ${formatBytes(needed)} in all, this machine has ${formatBytes(machine.memoryBytes)}: lower --context or cache.slots, or put ranks on other machines`,
    );
  if (local.length === check.ranks.length && local.length > 1 && check.short.p50Us > slowSumUs)
    advice.push(
      `a short sum over ${check.transport} takes ${check.short.p50Us.toFixed(0)} us here: ${
        check.transport === 'shared memory'
          ? 'something else uses the cores'
          : '--transport shm is faster between ranks of one machine'
      }`,
    );
  const slowest = Math.min(...check.ranks.map((rank) => rank.gigabytesPerSecond));
  const fastest = Math.max(...check.ranks.map((rank) => rank.gigabytesPerSecond));
  if (fastest > 1.5 * slowest)
    advice.push(
      `ranks differ in speed (${slowest.toFixed(1)} to ${fastest.toFixed(1)} GB/s) and wait for the slowest: give it a smaller \`share\` in the cluster file`,
    );
  return { ready: machine.zeromq !== undefined && needed <= machine.memoryBytes, advice };
}
