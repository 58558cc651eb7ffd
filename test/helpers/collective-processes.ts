/** Ranks as real processes (collective-rank.mjs), each behind a ProcessGroup that forwards its calls. */
import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { InvariantError, PeerError } from '../../config/errors.ts';
import { newGroupStats } from '../../collective/group.ts';
import type { GroupStats, ProcessGroup } from '../../collective/group.ts';
import type { Payload } from '../../collective/payload.ts';
import { ControlServer } from '../../collective/control.ts';
import type { MadeGroups } from '../suites/process-group.ts';

export type Transport = 'shm' | 'two levels' | 'ring' | 'direct' | 'auto';

/** Hosts by world size: one rank on each, ranks of a host apart, hosts of different sizes. */
export const hostsBySize: Readonly<Record<number, string>> = {
  1: 'a',
  2: 'ab',
  3: 'aab',
  4: 'abab',
  5: 'abbac',
  8: 'aaabcccb',
};

interface Answer {
  id: number;
  value?: unknown;
  error?: { name: string; message: string };
  stats?: GroupStats;
}

export interface MadeProcesses extends MadeGroups {
  readonly groups: readonly RankProcess[];
  readonly runId: string;
  readonly controlEndpoint: string;
}

/** Processes are kept and used for one group after another: starting one takes longer than any test. */
export class RankProcesses implements AsyncDisposable {
  readonly #transport: Transport;
  readonly #ranks: RankProcess[] = [];
  #control: ControlServer | null = null;
  #epoch = 0;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** @param hosts of two levels: each rank's. [worldSize] */
  async make(
    worldSize: number,
    timeoutMs: number,
    hosts = (hostsBySize[worldSize] ?? '').split(''),
  ): Promise<MadeProcesses> {
    while (this.#ranks.length < worldSize) this.#ranks.push(new RankProcess(this.#ranks.length));
    const groups = this.#ranks.slice(0, worldSize);
    // Only for its folder: ranks bind beside the coordinator's socket.
    this.#control ??= await ControlServer.bind('ipc');
    const controlEndpoint = this.#control.endpoint;
    const endpoints = await Promise.all(
      groups.map((group, rank) => group.call<string>('bind', { controlEndpoint, rank })),
    );
    const epoch = ++this.#epoch;
    const runId = `processes-${process.pid}`;
    await Promise.all(
      groups.map((group, rank) => {
        group.worldSize = worldSize;
        const settings = { rank, worldSize, epoch, endpoints, timeoutMs };
        return group.call('join', { transport: this.#transport, settings, runId, hosts });
      }),
    );
    const dispose = () => Promise.all(groups.map((group) => group[Symbol.asyncDispose]())).then(() => undefined);
    const named = this.#transport === 'two levels' ? { hosts } : {};
    return { groups, runId, controlEndpoint, ...named, [Symbol.asyncDispose]: dispose };
  }

  /** SIGKILL; the next make() starts another process for this rank. */
  async kill(rank: number): Promise<void> {
    await this.#ranks[rank]!.kill();
    this.#ranks[rank] = new RankProcess(rank);
  }

  /** Waits until every process has ended by itself: nothing of a group may keep one alive. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#ranks.map((rank) => rank.end()));
    await this.#control?.[Symbol.asyncDispose]();
  }
}

export class RankProcess implements ProcessGroup {
  readonly rank: number;
  worldSize = 0;
  stats: GroupStats = newGroupStats();
  readonly #child: ChildProcess;
  readonly #exit: Promise<unknown>;
  readonly #waiting = new Map<number, (answer: Answer) => void>();
  #calls = 0;

  constructor(rank: number) {
    this.rank = rank;
    const script = fileURLToPath(new URL('./collective-rank.mjs', import.meta.url));
    this.#child = fork(script, { serialization: 'advanced' });
    this.#exit = once(this.#child, 'exit');
    this.#child.on('exit', () => {
      for (const [id, settle] of this.#waiting)
        settle({ id, error: { name: 'PeerError', message: `rank ${rank} ended` } });
    });
    this.#child.on('message', (answer: Answer) => this.#waiting.get(answer.id)?.(answer));
  }

  async call<T>(action: string, args: object): Promise<T> {
    const id = this.#calls++;
    const answer = await new Promise<Answer>((resolve) => {
      this.#waiting.set(id, resolve);
      this.#child.send({ id, action, ...args });
    });
    this.#waiting.delete(id);
    if (answer.stats) this.stats = answer.stats;
    if (!answer.error) return answer.value as T;
    const { name, message } = answer.error;
    throw name === 'PeerError' ? new PeerError(message) : new InvariantError(message);
  }

  async allReduceSum(buffer: Float32Array, label: string, payload?: Payload): Promise<void> {
    buffer.set(await this.call<Float32Array>('allReduceSum', { buffer, label, payload }));
  }

  async allGather(part: Float32Array, lengths: readonly number[], out: Float32Array, label: string): Promise<void> {
    out.set(await this.call<Float32Array>('allGather', { part, lengths, out, label }));
  }

  async broadcast(buffer: Float32Array, root: number, label: string): Promise<void> {
    buffer.set(await this.call<Float32Array>('broadcast', { buffer, root, label }));
  }

  async barrier(label: string): Promise<void> {
    await this.call('barrier', { label });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.call('dispose', {});
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#exit;
  }

  async end(): Promise<void> {
    this.#child.send({ id: -1, action: 'end' });
    await this.#exit;
  }
}
