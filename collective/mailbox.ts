/**
 * Carries collective frames between ranks: one PULL socket where a rank receives from all others, one PUSH socket per
 * peer. Frames of one peer arrive in the order it sent them; they wait in a queue per peer until the algorithm asks.
 * Frames that are malformed, damaged, of another group or of another epoch are dropped and counted. A frame of another
 * operation than the one that runs is an InvariantError: ranks must call the same collectives in the same order.
 * Read next: zeromq-group.ts.
 */
import { InvariantError, PeerError } from '../config/errors.ts';
import { Deadline } from './deadline.ts';
import {
  DamagedFrame,
  decodeCollective,
  encodeCollective,
  floatsOfText,
  FrameError,
  headerBytes,
  textOfFloats,
} from './frame.ts';
import type { CollectiveFrame, CollectiveHeader } from './frame.ts';
import type { GroupStats } from './group.ts';
import type { MailboxSettings, Successor } from './mailbox-settings.ts';
import { describeCall } from './operation.ts';
import type { OperationCall } from './operation.ts';
import { payloadBytes, type Payload } from './payload.ts';
import type { Transport } from './ring.ts';
import { connectPush, receiveWithin, sendWithin } from './zmq.ts';
import type { Pull, Push } from './zmq.ts';

/** A receive looks this often whether the group was closed meanwhile. */
const closeCheckMs = 100;
/** A damaged frame may be a stranger's: for this long the whole one may still come. */
const damagedGraceMs = 500;
/** Frames of a later epoch that are kept for the next group: handshakes of ranks that were told first. */
const maxEarlyFrames = 1024;
/** Longer transfers are cut, so that a receiver can bound the size of a frame and adds while the rest travels. */
const maxPieceFloats = 1024 * 1024;
export const maxFrameBytes = headerBytes + 4 * maxPieceFloats;

export class Mailbox implements Transport {
  readonly rank: number;
  readonly worldSize: number;
  /** Frames dropped: malformed, of another group or epoch. */
  refused = 0;
  /** Why the latest was dropped; null: none was. */
  lastRefusal: string | null = null;

  readonly #settings: MailboxSettings;
  #stats: GroupStats;
  #graceMs = 0;
  #nameOf = (rank: number): string => `rank ${rank}`;
  readonly #others: readonly number[];
  readonly #inbox: Pull;
  readonly #early: Buffer[];
  readonly #outlets: readonly (Push | null)[]; // [worldSize], null for this rank
  readonly #waiting: readonly CollectiveFrame[][]; // [worldSize]
  /** When the latest damaged frame came that says it is from this rank; 0: none since the last whole one. [worldSize] */
  readonly #damagedAt: number[];
  /** Why a rank gave up that this one may wait for; null: none did. */
  #notice: { readonly from: number; readonly reason: string } | null = null;
  #call: OperationCall = { operation: 'hello', sequence: 0, total: 0, label: '' };

  #closed = false;

  /** @param early frames that arrived before this group was made; receives those of later epochs */
  constructor(inbox: Pull, early: Buffer[], settings: MailboxSettings, stats: GroupStats) {
    this.rank = settings.rank;
    this.worldSize = settings.worldSize;
    this.#settings = settings;
    this.#stats = stats;
    this.#others = settings.endpoints.flatMap((_, peer) => (peer === settings.rank ? [] : [peer]));
    this.#inbox = inbox;
    this.#outlets = settings.endpoints.map((endpoint, peer) =>
      peer === settings.rank ? null : connectPush(endpoint, settings.timeoutMs, settings.curveOf?.(peer)),
    );
    this.#waiting = settings.endpoints.map(() => []);
    this.#damagedAt = settings.endpoints.map(() => 0);
    this.#early = early;
    for (const bytes of early.splice(0)) this.#sort(bytes);
  }

  /** Frames sent and received from now on belong to this call. */
  begin(call: OperationCall): void {
    this.#call = call;
  }

  async send(to: number, step: number, data: Float32Array, payload: Payload = 'f32'): Promise<void> {
    for (const frame of this.#cut(step, data, payload)) await this.#push(to, frame);
    this.#stats.bytesSent += payloadBytes(data.length, payload);
  }

  sendToAll(step: number, data: Float32Array, payload?: Payload): Promise<void> {
    return this.sendToEach(this.#others, step, data, payload);
  }

  async sendToEach(
    peers: readonly number[],
    step: number,
    data: Float32Array,
    payload: Payload = 'f32',
  ): Promise<void> {
    for (const frame of this.#cut(step, data, payload)) {
      // All at once: a dead peer must not keep the frame from the living, who would then blame this rank.
      await Promise.all(peers.map((to) => this.#push(to, frame)));
    }
    this.#stats.bytesSent += payloadBytes(data.length, payload) * peers.length;
  }

  /** From now on frames are another group's. */
  passTo({ stats, graceMs, nameOf }: Successor): void {
    this.#stats = stats;
    this.#graceMs = graceMs;
    this.#nameOf = nameOf;
  }

  /** Whether a receive failed because its sender said that it gave up. */
  get wasTold(): boolean {
    return this.#notice !== null;
  }

  /** Tells these ranks, who may wait for this one in vain. Settles when it is sent, or this mailbox is closed. */
  async giveUp(peers: readonly number[], reason: string): Promise<void> {
    const { sequence } = this.#call;
    const { groupTag, epoch, rank: source } = this.#settings;
    const header = { operation: 'gave-up', groupTag, epoch, sequence, source, step: 0, total: 0, offset: 0 } as const;
    const frame = encodeCollective(header, floatsOfText(reason));
    // Nobody waits for what a dead rank does not take.
    await Promise.allSettled(peers.map((to) => this.#push(to, frame)));
  }

  /** @throws PeerError when `timeoutMs` pass without the frame; InvariantError when the peer is in another operation */
  async receive(
    from: number,
    step: number,
    length: number,
    take: (piece: Float32Array, offset: number) => void,
  ): Promise<void> {
    let received = 0;
    do {
      const { header, data, bytes } = await this.#next(from);
      this.#checkHeader(header, from, step, received);
      if (received + data.length > length) throw this.#mismatch(header, from, `${received + data.length} elements`);
      this.#damagedAt[from] = 0;
      take(data, received);
      received += data.length;
      this.#stats.bytesReceived += bytes;
    } while (received < length);
  }

  /** Makes a receive in flight fail within `closeCheckMs`. The inbox stays open: it belongs to whoever bound it. */
  close(): void {
    this.#closed = true;
    for (const outlet of this.#outlets) outlet?.close();
  }

  *#cut(step: number, data: Float32Array, payload: Payload): Generator<Buffer> {
    const { operation, sequence, total } = this.#call;
    const { groupTag, epoch, rank: source } = this.#settings;
    let offset = 0;
    do {
      const piece = data.subarray(offset, offset + maxPieceFloats);
      yield encodeCollective({ operation, groupTag, epoch, sequence, source, step, total, offset }, piece, payload);
      offset += maxPieceFloats;
    } while (offset < data.length);
  }

  async #push(to: number, frame: Buffer): Promise<void> {
    const outlet = this.#outlets[to];
    if (!outlet) throw new InvariantError(`rank ${this.rank}: no way to send to rank ${to} of ${this.worldSize}`);
    const { tamper, endpoints } = this.#settings;
    const sent = tamper === undefined ? frame : tamper(frame, to);
    if (sent === null) return;
    try {
      await sendWithin(outlet, sent, () => {
        const call = describeCall(this.#call);
        return `rank ${this.rank}: frame to ${this.#nameOf(to)} (${endpoints[to]}) for ${call}`;
      });
    } catch (error) {
      throw this.#closed ? new PeerError(this.#closedWhile(), { cause: error }) : error;
    }
  }

  async #next(from: number): Promise<CollectiveFrame> {
    const queue = this.#waiting[from];
    if (!queue) throw new InvariantError(`rank ${this.rank}: nothing to expect from rank ${from} of ${this.worldSize}`);
    const deadline = new Deadline(this.#settings.timeoutMs + this.#graceMs);
    for (;;) {
      const frame = queue.shift();
      if (frame) return frame;
      if (this.#notice) throw this.#told(this.#notice);
      const remainingMs = Math.min(deadline.remainingMs(), this.#damageGraceMs(from));
      const frames = await receiveWithin(this.#inbox, Math.min(remainingMs, closeCheckMs));
      // A stranger may send many parts; the first is judged as any other frame. Also when this group was closed
      // meanwhile: it may be a handshake for the next.
      if (frames) this.#sort(frames[0] ?? Buffer.alloc(0));
      if (this.#closed || this.#inbox.closed) throw new PeerError(this.#closedWhile());
      if (!frames && remainingMs <= closeCheckMs) throw this.#late(from);
    }
  }

  /** How long to wait for this rank after a damaged frame. */
  #damageGraceMs(from: number): number {
    const damagedAt = this.#damagedAt[from] ?? 0;
    return damagedAt === 0 ? Infinity : Math.max(0, Math.ceil(damagedAt + damagedGraceMs - performance.now()));
  }

  #sort(bytes: Buffer): void {
    let frame: CollectiveFrame;
    try {
      frame = decodeCollective(bytes);
    } catch (error) {
      if (error instanceof DamagedFrame) this.#suspect(error);
      if (error instanceof FrameError) return this.#refuse(error.message);
      throw error;
    }
    const { groupTag, epoch, source } = frame.header;
    const now = this.#settings.epoch;
    if (epoch > now && this.#early.length < maxEarlyFrames) return void this.#early.push(bytes);
    if (epoch !== now) return this.#refuse(`frame of epoch ${epoch} from rank ${source}, now ${now}`);
    if (groupTag !== this.#settings.groupTag) return this.#refuse(`frame of another group, from its rank ${source}`);
    const queue = source === this.rank ? undefined : this.#waiting[source];
    if (!queue) return this.#refuse(`frame that claims to be from rank ${source}`);
    if (frame.header.operation === 'gave-up') this.#notice ??= { from: source, reason: textOfFloats(frame.data) };
    else queue.push(frame);
  }

  #suspect({ header }: DamagedFrame): void {
    const { groupTag, epoch } = this.#settings;
    if (header.groupTag === groupTag && header.epoch === epoch) this.#damagedAt[header.source] = performance.now();
  }

  #refuse(reason: string): void {
    this.refused++;
    this.lastRefusal = reason;
  }

  #closedWhile(): string {
    return `rank ${this.rank}: ${describeCall(this.#call)} was given up: the group was closed`;
  }

  #told({ from, reason }: { readonly from: number; readonly reason: string }): PeerError {
    const call = describeCall(this.#call);
    return new PeerError(`rank ${this.rank}: ${call} was given up, as ${this.#nameOf(from)} did: ${reason}`);
  }

  #late(from: number): PeerError {
    if (this.#damagedAt[from] !== 0) return this.#damaged(from);
    const dropped =
      this.refused === 0 ? '' : ` (${this.refused} foreign frames dropped, the last: ${this.lastRefusal})`;
    const { timeoutMs } = this.#settings;
    return new PeerError(
      `rank ${this.rank}: nothing from ${this.#nameOf(from)} for ${describeCall(this.#call)} in ${timeoutMs} ms${dropped}`,
    );
  }

  #checkHeader(header: CollectiveHeader, from: number, step: number, offset: number): void {
    const { operation, sequence, total } = this.#call;
    const sameCall = header.operation === operation && header.sequence === sequence && header.total === total;
    if (!sameCall || header.step !== step || header.offset !== offset)
      throw this.#mismatch(header, from, `step ${step}`);
  }

  #damaged(from: number): PeerError {
    return new PeerError(
      `rank ${this.rank}: a frame from ${this.#nameOf(from)} for ${describeCall(this.#call)} was damaged on the way (wrong checksum)`,
    );
  }

  #mismatch(header: CollectiveHeader, from: number, where: string): PeerError | InvariantError {
    // The frame that should come first was dropped: that peer did nothing wrong.
    if (this.#damagedAt[from] !== 0) return this.#damaged(from);
    const theirs = `${header.operation} #${header.sequence} (${4 * header.total} B, step ${header.step})`;
    return new InvariantError(
      `rank ${this.rank} is in ${describeCall(this.#call)}, ${where}, but ${this.#nameOf(from)} sent ${theirs}; ` +
        'all ranks must call the same collectives in the same order',
    );
  }
}
