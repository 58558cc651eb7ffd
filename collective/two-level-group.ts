/**
 * ProcessGroup of ranks on several hosts: the ranks of a host meet in shared memory, and the first of each, its leader,
 * exchanges with the other leaders over ZeroMQ. So a host sends as much as one rank would, whatever its number of ranks.
 *
 * An all-reduce sums in two levels: the ranks of each host in the order of ring.ts, then the hosts' sums in the same
 * order, hosts numbered by their first ranks. All ranks hold the same bits, but not those of a flat group: (a + b) + (c
 * + d) is not ((a + b) + c) + d. Cost: two meetings in shared memory and one exchange of the leaders.
 *
 * Who fails tells those that wait for it: its host in shared memory, the other leaders by a frame. They end with its
 * reason, which names the rank that is missing, instead of naming the messenger. So a leader waits a little longer for
 * other leaders than the deadline, and the ranks of its host a little longer for it.
 */
import { messageOf } from '../config/errors.ts';
import { directBarrier, directBroadcast, directRoundTrip } from './direct.ts';
import { Exchange, type ZeroMqAlgorithm } from './exchange.ts';
import type { Operation } from './frame.ts';
import type { GroupStats, ProcessGroup } from './group.ts';
import { hostRanksOf, type HostRanks } from './host-ranks.ts';
import { LeaderTransport } from './leader-transport.ts';
import type { Mailbox } from './mailbox.ts';
import { checkGather, checkRoot, OperationRunner, partsOf } from './operation.ts';
import type { OperationCall } from './operation.ts';
import type { Payload } from './payload.ts';
import { SharedRounds, type Segment } from './shared-rounds.ts';
import { copyWork, gatherWork, meetingWork, sumWork } from './shared-work.ts';

/** Until those that wait for a rank have heard why it gave up, also on a machine that is busy. */
const noticeMs = 1000;

export interface TwoLevelSettings {
  /** Name of each rank's host. [worldSize] */
  readonly hosts: readonly string[];
  /** Deadline of every wait for other ranks. */
  readonly timeoutMs: number;
  /** Of a group of the same ranks, which is not used any more. */
  readonly mailbox: Mailbox;
  /** Mapped by the ranks of this rank's host. */
  readonly segment: Segment;
  /** Among leaders, the same on all ranks. By default auto: by message size. */
  readonly algorithm?: ZeroMqAlgorithm;
}

export class TwoLevelGroup implements ProcessGroup {
  readonly rank: number;
  readonly worldSize: number;

  readonly #hostRanks: HostRanks;
  readonly #host: number;
  readonly #runner: OperationRunner;
  readonly #mailbox: Mailbox;
  readonly #rounds: SharedRounds;
  /** Only of a leader. */
  readonly #leaders: { readonly transport: LeaderTransport; readonly exchange: Exchange } | null;
  /** Leaders of the other hosts. */
  readonly #otherLeaders: readonly number[];
  /** Never rejects. */
  #notices: Promise<void> = Promise.resolve();
  #closed = false;

  constructor({ hosts, timeoutMs, mailbox, segment, algorithm = 'auto' }: TwoLevelSettings) {
    const { rank, worldSize } = mailbox;
    this.rank = rank;
    this.worldSize = worldSize;
    this.#runner = new OperationRunner(rank);
    this.#hostRanks = hostRanksOf(hosts);
    this.#host = this.#hostRanks.hostOf[rank] ?? 0;
    this.#mailbox = mailbox;
    const nameOf = (of: number): string => `rank ${of} (${hosts[of]})`;
    mailbox.passTo({ stats: this.stats, graceMs: noticeMs, nameOf });
    const ranks = this.#hostRanks.ranks[this.#host] ?? [];
    const place = ranks.indexOf(rank);
    this.#rounds = new SharedRounds(segment, { place, ranks, timeoutMs, nameOf }, this.stats);
    const leaders = this.#hostRanks.ranks.map(([first = 0]) => first); // [hosts]
    this.#otherLeaders = leaders.filter((_, host) => host !== this.#host);
    const transport = new LeaderTransport(mailbox, leaders, this.#host);
    this.#leaders = place === 0 ? { transport, exchange: new Exchange(transport, algorithm) } : null;
  }

  get stats(): GroupStats {
    return this.#runner.stats;
  }

  /** Measures which algorithm of the leaders is fastest for which size, and uses it. Called by all ranks at once. */
  async chooseAlgorithms(): Promise<void> {
    const label = 'choice of algorithm';
    // Counts for itself: the other ranks of a host take no part, and must agree on the numbers of what follows.
    const runner = new OperationRunner(this.rank);
    try {
      await this.#leaders?.exchange.measure((floats, work) =>
        runner.run('all-reduce', floats, label, (call) => {
          this.#mailbox.begin(call);
          return work();
        }),
      );
    } catch (error) {
      if (!this.#closed) this.#tell(messageOf(error));
      throw error;
    }
    await this.barrier(label);
  }

  allReduceSum(buffer: Float32Array, label: string, payload: Payload = 'f32'): Promise<void> {
    return this.#run('all-reduce', buffer.length, label, async (call) => {
      const { place, members } = this.#rounds;
      await this.#rounds.run(call, sumWork(place, members, buffer));
      await this.#leaders?.exchange.allReduce(buffer, payload);
      await this.#takeFromLeader(call, buffer);
    });
  }

  allGather(part: Float32Array, lengths: readonly number[], out: Float32Array, label: string): Promise<void> {
    return this.#run('all-gather', out.length, label, async (call) => {
      checkGather(this.rank, this.worldSize, part, lengths, out, label);
      const parts = partsOf(out, lengths);
      parts[this.rank]?.set(part);
      const partsOfHost = (host: number): Float32Array[] =>
        (this.#hostRanks.ranks[host] ?? []).flatMap((rank) => parts[rank] ?? []);
      await this.#rounds.run(call, gatherWork(this.#rounds.place, partsOfHost(this.#host)));
      await this.#gatherHosts(partsOfHost, out.length);
      await this.#takeFromLeader(call, out);
    });
  }

  broadcast(buffer: Float32Array, root: number, label: string): Promise<void> {
    return this.#run('broadcast', buffer.length, label, async (call) => {
      checkRoot(this.rank, this.worldSize, root, label);
      const host = this.#hostRanks.hostOf[root] ?? 0;
      const from = this.#hostRanks.ranks[host]?.indexOf(root) ?? 0;
      const isHere = host === this.#host;
      if (isHere) await this.#rounds.run(call, copyWork(this.#rounds.place, from, buffer));
      if (this.#leaders) await directBroadcast(this.#leaders.transport, buffer, host);
      if (!isHere) await this.#takeFromLeader(call, buffer);
    });
  }

  barrier(label: string): Promise<void> {
    return this.#run('barrier', 0, label, async (call) => {
      await this.#rounds.run(call, meetingWork);
      if (this.#leaders) await directBarrier(this.#leaders.transport);
      await this.#rounds.run(call, meetingWork, 2 * noticeMs);
    });
  }

  /** Over sockets, which is what carries sums between hosts; ranks of one host have no link of their own. */
  readonly roundTrip = (from: number, to: number, buffer: Float32Array, label: string): Promise<void> =>
    this.#run('round-trip', buffer.length, label, async () => {
      const { hostOf } = this.#hostRanks;
      if ((this.rank !== from && this.rank !== to) || hostOf[from] === hostOf[to]) return;
      await directRoundTrip(this.#mailbox, buffer, from, to);
    });

  /** An operation that runs meanwhile fails with a PeerError. Leaves the binding open. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#rounds.close();
    this.#mailbox.close();
    await this.#runner.close();
    await this.#notices;
    this.#rounds.unmap();
  }

  #run(
    operation: Operation,
    total: number,
    label: string,
    work: (call: OperationCall) => Promise<void>,
  ): Promise<void> {
    return this.#runner.run(operation, total, label, async (call) => {
      this.#mailbox.begin(call);
      try {
        await work(call);
      } catch (error) {
        if (!this.#closed) this.#tell(messageOf(error));
        throw error;
      }
    });
  }

  #tell(reason: string): void {
    this.#rounds.giveUp(reason);
    // Whoever told this rank has told the other leaders.
    if (!this.#mailbox.wasTold) this.#notices = this.#mailbox.giveUp(this.#otherLeaders, reason);
  }

  #takeFromLeader(call: OperationCall, buffer: Float32Array): Promise<void> | undefined {
    return this.#rounds.run(call, copyWork(this.#rounds.place, 0, buffer), 2 * noticeMs);
  }

  /** Of a leader: the parts of each host's ranks travel as one. */
  async #gatherHosts(partsOfHost: (host: number) => readonly Float32Array[], total: number): Promise<void> {
    if (!this.#leaders) return;
    const hosts = this.#hostRanks.ranks.map((_, host) => partsOfHost(host));
    const lengths = hosts.map((parts) => parts.reduce((sum, { length }) => sum + length, 0));
    const joined = partsOf(new Float32Array(total), lengths); // [hosts]
    for (const [host, parts] of hosts.entries()) if (host === this.#host) join(parts, joined[host]);
    await this.#leaders.exchange.allGather(joined, total);
    for (const [host, parts] of hosts.entries()) if (host !== this.#host) divide(joined[host], parts);
  }
}

function join(parts: readonly Float32Array[], joined: Float32Array | undefined): void {
  let start = 0;
  for (const part of parts) {
    joined?.set(part, start);
    start += part.length;
  }
}

function divide(joined: Float32Array | undefined, parts: readonly Float32Array[]): void {
  let start = 0;
  for (const part of parts) if (joined) part.set(joined.subarray(start, (start += part.length)));
}
