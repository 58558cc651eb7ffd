/**
 * A running cluster: the plan, the processes and the questions they answer. `start` returns when every rank has loaded
 * its shard; disposal ends every process and leaves no file. Samples nothing and reads no text.
 * Read next: ask-ranks.ts, control-loop.ts (waiting and failing), rank-processes.ts, engine.ts (the caller).
 */
import { randomBytes } from 'node:crypto';
import type { ClusterConfig } from '../config/cluster.ts';
import { asError, invariant, PeerError } from '../config/errors.ts';
import type { ShardPlan } from '../config/shard-plan.ts';
import type { Checkpoint } from '../model/checkpoint.ts';
import type { Chaos, Ready, Step } from '../collective/messages.ts';
import type { Setup, WorkerOptions } from '../collective/setup.ts';
import type { Hello } from '../collective/greetings.ts';
import { removeSocketFile } from '../collective/endpoint.ts';
import { type Ask, joinStep, momentsOf, type MomentsRequests, type StepResult } from './ask-ranks.ts';
import { Calibration } from './calibration.ts';
import { ClusterChecks } from './cluster-checks.ts';
import { layOut, setupOf, type Layout } from './cluster-layout.ts';
import { openControlPlane, type ControlPlane } from './control-plane.ts';
import { ControlLoop, type RankReply } from './control-loop.ts';
import { launchesOf } from './remote/launches.ts';
import { Places } from './remote/places.ts';
import type { Reduced } from './remote/reduced.ts';
import { RankAbsent } from './failures.ts';
import { requireSameVersion } from './same-version.ts';
import { RankProcesses } from './rank-processes.ts';

export interface ClusterOptions {
  /** Open while the cluster starts; the ranks open it for themselves. */
  readonly checkpoint: Checkpoint;
  readonly config: ClusterConfig;
  /** One line for the user, on stderr: the scheme and why. */
  readonly log: (line: string) => void;
  /** Ends every wait with its reason; disposal stays the caller's. */
  readonly signal?: AbortSignal;
  /** Called when a rank fails, also between two requests; once until recover(). */
  readonly onFailure?: (error: Error) => void;
  /** Told while ranks load: layers that are loaded, of all ranks together, and how many there are. */
  readonly onLoading?: (done: number, total: number) => void;
  /** Fault drills only: ranks obey chaos(). */
  readonly allowChaos?: boolean;
  /** Where `config` has not all ranks of the cluster file. */
  readonly reduced?: Reduced | undefined;
  /** How long the address may still be taken: that of a cluster which has just ended. */
  readonly bindWithinMs?: number;
}

/** Processes must have started and connected by then, on a machine that starts many of them on few cores. */
const helloDeadlineMs = 60_000;
/** Slowest disk and slowest step that are still waited for; a rank that dies is noticed at once. */
const loadBytesPerMs = 5000;
const requestDeadlineMs = 600_000;
/** Of JavaScript's heap in a fault drill, which fills it: several times what a rank needs, soon reached. */
const drillHeapMb = 128;
/** How long a rank may take to leave by itself; after a failure it may be waiting for a rank that is gone. */
const patienceMs = { well: 2000, broken: 200 };

export class Cluster implements AsyncDisposable {
  /** Of an unsupervised cluster, which ends with its first loss. */
  readonly cacheEpoch: number = 0;
  readonly plan: ShardPlan;
  /** Why the plan has this scheme, in words for the user. */
  readonly schemeReason: string;
  readonly options: WorkerOptions;
  readonly vocabSize: number;
  readonly hiddenDim: number;
  /** From the start of the first process to the last rank's ready. */
  loadMs = 0;
  /** [worldSize] */
  ranks: readonly (Ready & Pick<Hello, 'pid' | 'host'>)[] = [];
  readonly moments: MomentsRequests;
  readonly calibration: Calibration;
  readonly checks: ClusterChecks;

  readonly #control: ControlPlane;
  readonly #places: Places;
  readonly #processes: RankProcesses;
  readonly #loop: ControlLoop;
  readonly #options: ClusterOptions;
  readonly #signal: AbortSignal | undefined;
  readonly #runId = randomBytes(6).toString('hex');
  /** By rank, of the process that has the rank now. */
  #hellos: Hello[] = [];
  /** By rank. */
  readonly #layersLoaded: number[] = [];
  readonly #interrupt = (): void => this.giveUp(asError(this.#signal?.reason));
  #receiving: Promise<void> = Promise.resolve();

  private constructor(control: ControlPlane, layout: Layout, options: ClusterOptions) {
    const { config } = options.checkpoint;
    this.plan = layout.plan;
    this.schemeReason = layout.reason;
    this.options = layout.options;
    this.vocabSize = config.vocabSize;
    this.hiddenDim = config.hiddenDim;
    const ask: Ask = (request, payload) => this.#ask(request, payload);
    this.moments = momentsOf(ask, this.plan.worldSize, this.hiddenDim);
    this.calibration = new Calibration(ask);
    this.checks = new ClusterChecks(ask, (rank, request, payload) =>
      this.#loop.askOne(rank, request, requestDeadlineMs, payload),
    );
    this.#control = control;
    this.#options = options;
    this.#signal = options.signal;
    const { server, keys, token, identity } = control;
    this.#loop = new ControlLoop(server, this.plan.worldSize, (rank) => this.#identify(rank));
    this.#loop.onLoading = (rank, layers) => this.#loaded(rank, layers);
    if (options.onFailure !== undefined) this.#loop.onFailure = options.onFailure;
    this.#places = new Places({
      config: options.config,
      identity,
      token,
      endpoint: server.endpoint,
      hasKeys: keys !== undefined,
      reduced: options.reduced,
      isWanted: (rank) => this.#loop.awaitsHello(rank),
    });
    this.#loop.advice = (rank) => this.#places.advice(rank);
    server.place = (offer, isTaken) => this.#places.place(offer, isTaken);
    this.#processes = new RankProcesses({
      launches: launchesOf(options, { endpoint: server.endpoint, token, keys }),
      endpoint: server.endpoint,
      token,
      keys,
      heapLimitMb: options.allowChaos === true ? drillHeapMb : undefined,
      onExit: (rank, exit) => this.#loop.exited(rank, exit),
    });
  }

  /**
   * @throws ConfigError for an impossible plan, an address in use or a rank that refuses its part; PeerError when a rank
   * dies or is late. Nothing is left behind then.
   */
  static async start(options: ClusterOptions): Promise<Cluster> {
    options.signal?.throwIfAborted();
    // An impossible plan is refused before any socket or process exists.
    const layout = layOut(options.checkpoint, options.config);
    const control = await openControlPlane(options);
    let cluster: Cluster | undefined;
    try {
      cluster = new Cluster(control, layout, options);
      await cluster.#join();
      return cluster;
    } catch (error) {
      await (cluster ?? control)[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** One forward pass over all ranks. @param memory for logits  @throws PeerError within about 100 ms when a rank dies meanwhile */
  async step(step: Omit<Step, 'kind' | 'id'>, memory?: Float32Array): Promise<StepResult> {
    return joinStep(this.plan, this.vocabSize, step, await this.#ask({ kind: 'step', ...step }), memory);
  }

  /**
   * After a failure: replaces the processes that are lost and lets all ranks join anew; the others keep their weights.
   * What a rank had cached is to be taken as lost. May be called again when it fails.
   * @throws as start; and the failure itself when this cluster is past help
   */
  async recover(): Promise<void> {
    const lost = this.#loop.nextEpoch();
    for (const rank of lost)
      if (this.#places.isRemote(rank)) this.#control.server.dismiss(rank);
      else this.#control.server.forget(rank);
    const replaced = Promise.all(lost.map((rank) => this.#processes.replace(rank)));
    const abandoned = lost.map((rank) => this.#hellos[rank]?.ringEndpoint);
    const isLocal = lost.some((rank) => !this.#places.isRemote(rank));
    await this.#meet(lost, isLocal ? helloDeadlineMs : this.#options.config.faults.rejoinMs);
    await replaced;
    for (const endpoint of abandoned) if (endpoint !== undefined) await removeSocketFile(endpoint);
  }

  /** Ranks whose processes cannot go on; empty while the cluster works. */
  get lostRanks(): readonly number[] {
    return this.#loop.lost;
  }

  /** Whether this machine did not start the rank's process: then its number means nothing here. */
  isRemote(rank: number): boolean {
    return this.#places.isRemote(rank);
  }

  /** Whether one of those that are lost is on another machine: it may come back by itself. */
  get hasLostRemote(): boolean {
    return this.lostRanks.some((rank) => this.isRemote(rank));
  }

  /** Ends every wait with this error, a recovery's too. */
  giveUp(error: Error): void {
    this.#loop.fail(error);
  }

  /** Where each rank receives what others send. [worldSize] */
  get ringEndpoints(): readonly string[] {
    return this.#hellos.map((hello) => hello.ringEndpoint);
  }

  /** Turned away so far: messages (malformed, of strangers, of a second process for a rank), connections with wrong keys. */
  get refused(): { readonly messages: number; readonly handshakes: number } {
    const { refused: messages, refusedHandshakes: handshakes } = this.#control.server;
    return { messages, handshakes };
  }

  /** Since the rank was certainly there. A rank that answers heartbeats is seen, also while it computes or has no work. */
  lastSeenMs(rank: number): number {
    const ms = Math.round(performance.now() - this.#loop.seenAt(rank));
    return this.lostRanks.includes(rank) ? ms : Math.min(ms, this.#control.server.noticeMs);
  }

  /** Makes a rank misbehave; see the message. @throws InvariantError unless this cluster was started for that */
  async chaos(rank: number, chaos: Omit<Chaos, 'kind'>): Promise<void> {
    invariant(this.#options.allowChaos === true, 'chaos: this cluster was not started for fault drills');
    await this.#control.server.send(rank, { kind: 'chaos', ...chaos });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#signal?.removeEventListener('abort', this.#interrupt);
    this.#loop.close();
    await this.#loop.tell(() => ({ kind: 'stop' }));
    await this.#processes.end(this.#loop.failed ? patienceMs.broken : patienceMs.well);
    await this.#control[Symbol.asyncDispose]();
    await this.#receiving;
  }

  async #join(): Promise<void> {
    const startedAt = performance.now();
    const { plan } = this;
    const { log, config } = this.#options;
    const { joinSeconds } = config.coordinator;
    log(`scheme ${plan.scheme} on ${plan.worldSize} rank${plan.worldSize === 1 ? '' : 's'}: ${this.schemeReason}`);
    this.#signal?.addEventListener('abort', this.#interrupt, { once: true });
    // The signal may have come while the socket was bound, and does not come twice.
    if (this.#signal?.aborted === true) this.#interrupt();
    this.#receiving = this.#loop.run();
    const ranks = plan.ranks.map(({ rank }) => rank);
    const remote = ranks.filter((rank) => this.#places.isRemote(rank));
    for (const rank of remote) log(`waiting for rank ${rank}: ${this.#places.hint(rank)}`);
    await this.#meet(ranks, remote.length > 0 ? joinSeconds * 1000 : helloDeadlineMs);
    this.loadMs = performance.now() - startedAt;
  }

  /** Waits until the new processes have said hello and all ranks have joined; the new ones load meanwhile. */
  async #meet(newRanks: readonly number[], helloWithinMs: number): Promise<void> {
    const { epoch } = this.#loop;
    for (const hello of await this.#greeted(newRanks, helloWithinMs)) {
      requireSameVersion(hello);
      this.#hellos[hello.rank] = hello;
    }
    const { weightFileBytes } = this.#options.checkpoint;
    const ready = this.#loop.hear('ready', helloDeadlineMs + weightFileBytes / loadBytesPerMs, 'while loading');
    const ring = {
      ringEndpoints: [...this.ringEndpoints],
      ringKeys: this.#hellos.map((hello) => hello.ringKey),
      hosts: this.#hellos.map((hello) => hello.host),
    };
    const [answers] = await Promise.all([
      ready,
      this.#loop.tell((rank) =>
        newRanks.includes(rank) ? this.#setupOf(rank, ring) : { kind: 'rejoin', epoch, ...ring },
      ),
    ]);
    this.ranks = answers.map((answer, rank) => ({
      ...answer,
      pid: this.#hellos[rank]?.pid ?? 0,
      host: this.#hellos[rank]?.host ?? '',
    }));
  }

  /** @throws RankAbsent when a rank that joins does not come */
  async #greeted(ranks: readonly number[], deadlineMs: number): Promise<Hello[]> {
    try {
      return await this.#loop.hear('hello', deadlineMs, 'while starting', ranks);
    } catch (error) {
      if (!(error instanceof PeerError) || !this.hasLostRemote) throw error;
      throw new RankAbsent(error.message, { cause: error });
    }
  }

  #identify(rank: number): { pid: number | undefined; host?: string } {
    if (!this.#places.isRemote(rank)) return { pid: this.#processes.pidOf(rank) };
    const hello = this.#hellos[rank];
    return hello === undefined ? { pid: undefined } : { pid: hello.pid, host: hello.host };
  }

  #setupOf(rank: number, ring: Pick<Setup, 'ringEndpoints' | 'ringKeys' | 'hosts'>): Setup {
    const { plan, options } = this;
    return setupOf(rank, this.#options, { plan, options, epoch: this.#loop.epoch, runId: this.#runId, ...ring });
  }

  #loaded(rank: number, layers: number): void {
    this.#layersLoaded[rank] = layers;
    const done = this.#layersLoaded.reduce((sum, each) => sum + each, 0);
    this.#options.onLoading?.(done, this.plan.worldSize * this.#options.checkpoint.config.numLayers);
  }

  #ask(request: Parameters<ControlLoop['ask']>[0], payload?: Float32Array): Promise<RankReply[]> {
    return this.#loop.ask(request, requestDeadlineMs, payload);
  }
}
