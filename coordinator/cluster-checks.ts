/** What a cluster's ranks measure of themselves and of the ways between them, for `tpla doctor` and benchmarks. */
import type { Reply, RankRequest } from '../collective/messages.ts';
import type { Ask } from './ask-ranks.ts';
import type { RankReply, WithoutId } from './control-loop.ts';

type AskOne = (rank: number, request: WithoutId<RankRequest>, payload?: Float32Array) => Promise<RankReply>;

export interface ComputeSpeed {
  readonly gigabytesPerSecond: number;
  readonly gigaflopsPerSecond: number;
  /** Of the rank's host, with the weights of all its ranks loaded. */
  readonly freeMemoryBytes: number;
  readonly memoryBytes: number;
}

export class ClusterChecks {
  readonly #ask: Ask;
  readonly #askOne: AskOne;

  constructor(ask: Ask, askOne: AskOne) {
    this.#ask = ask;
    this.#askOne = askOne;
  }

  /** How fast each rank computes, all at once as in a step: GB/s of weights read, GFLOP/s of a larger product. */
  async compute(): Promise<readonly ComputeSpeed[]> {
    const replies = await this.#ask({ kind: 'computeCheck' });
    return replies.map(({ payload: [gigabytes = 0, gigaflops = 0, free = 0, all = 0] }) => ({
      gigabytesPerSecond: gigabytes,
      gigaflopsPerSecond: gigaflops,
      freeMemoryBytes: free,
      memoryBytes: all,
    }));
  }

  /** Runs `count` all-reduces of `floats` elements on all ranks, every element checked; see Reply.latenciesUs. */
  async collective(floats: number, count: number): Promise<readonly Reply[]> {
    const replies = await this.#ask({ kind: 'collectiveCheck', floats, count });
    return replies.map(({ reply }) => reply);
  }

  /** Round trips between two ranks. @returns microseconds, sorted; empty where sums do not go over sockets */
  async link(from: number, to: number, floats: number, count: number): Promise<readonly number[]> {
    const replies = await this.#ask({ kind: 'linkCheck', from, to, floats, count });
    return replies[from]?.reply.latenciesUs ?? [];
  }

  /** Round trips between the coordinator and one rank. @returns microseconds, sorted */
  async control(rank: number, floats: number, count: number): Promise<readonly number[]> {
    const payload = new Float32Array(floats);
    const latenciesUs: number[] = [];
    for (let round = 0; round < count; round++) {
      const started = performance.now();
      await this.#askOne(rank, { kind: 'echo' }, payload);
      latenciesUs.push((performance.now() - started) * 1000);
    }
    return latenciesUs.sort((a, b) => a - b);
  }
}
