/**
 * Bytes on the wire. Control messages: one frame of MessagePack, optionally a second frame of raw float32. Collective
 * frames: one frame of 36 header bytes and the values, as payload.ts has them (one frame instead of two saves a queue operation per hop); the
 * header ends with a CRC-32 of everything else. All numbers little-endian. Refuses malformed input with a FrameError, which receivers count and drop: a stranger's
 * bytes must not stop a rank. Read next: zmq.ts (control), mailbox.ts (collectives).
 */
import { crc32 } from 'node:zlib';
import { Packr } from 'msgpackr';
import { z } from 'zod';
import { payloadNames } from '../config/cluster.ts';
import { invariant } from '../config/errors.ts';
import { protocolVersion } from './messages.ts';
import { decodePayload, encodePayload, payloadBytes, payloadElements, type Payload } from './payload.ts';
import { refusalOfMsgpack } from './plain-msgpack.ts';

/** What arrived is not ours, or damaged. Never leaves collective/: receivers count it. */
export class FrameError extends Error {
  override readonly name = 'FrameError';
}

/** A collective frame whose bytes changed on the way, or a stranger's; the header may be what changed. */
export class DamagedFrame extends FrameError {
  readonly header: CollectiveHeader;

  constructor(header: CollectiveHeader) {
    super(`checksum of a frame that says it is from rank ${header.source} is wrong`);
    this.header = header;
  }
}

/** A prompt of 128 Ki tokens packs into 0.6 MiB; a larger control message is not ours. */
export const maxMessageBytes = 16 * 1024 * 1024;
/** The largest payload is logits [maxStepTokens, localVocab]: 1024 x 262144 in float32. */
export const maxPayloadBytes = 1024 * 1024 * 1024;

const packr = new Packr({ useRecords: false });

export interface DecodedMessage {
  /** Unknown until a schema of messages.ts has parsed it. */
  readonly message: unknown;
  readonly payload?: Float32Array;
}

/** @returns one or two frames; the payload is copied, the caller may change it at once. */
export function encodeMessage(message: object, payload?: Float32Array): Buffer[] {
  const packed = packr.pack(message);
  invariant(packed.length <= maxMessageBytes, `control message of ${packed.length} B, limit ${maxMessageBytes} B`);
  return payload ? [packed, Buffer.from(checkedBytes(payload))] : [packed];
}

/** The same without a copy: ZeroMQ reads the payload after send() has returned, until the peer has it. */
export function encodeLent(message: object, payload: Float32Array): Buffer[] {
  const { buffer, byteOffset, byteLength } = checkedBytes(payload);
  return [...encodeMessage(message), Buffer.from(buffer, byteOffset, byteLength)];
}

function checkedBytes(payload: Float32Array): Uint8Array {
  invariant(payload.byteLength <= maxPayloadBytes, `payload of ${payload.byteLength} B, limit ${maxPayloadBytes} B`);
  return bytesOf(payload);
}

/** @throws FrameError naming what is wrong. The payload is a view of the frame where its alignment allows. */
export function decodeMessage(frames: readonly Buffer[]): DecodedMessage {
  const [packed, raw] = frames;
  if (!packed || frames.length > 2) throw new FrameError(`${frames.length} frames, expected 1 or 2`);
  if (packed.length > maxMessageBytes) throw new FrameError(`${packed.length} B, limit ${maxMessageBytes} B`);
  const refusal = refusalOfMsgpack(packed);
  if (refusal !== null) throw new FrameError(refusal);
  const message: unknown = packr.unpack(packed);
  return raw ? { message, payload: floatsOf(raw) } : { message };
}

/** @throws FrameError naming what is wrong, down to the key */
export function parseMessage<Message>(
  frames: readonly Buffer[],
  schema: z.ZodType<Message>,
): { message: Message; payload?: Float32Array } {
  const { message, payload } = decodeMessage(frames);
  const parsed = schema.safeParse(message);
  if (!parsed.success) throw new FrameError(z.prettifyError(parsed.error));
  return payload ? { message: parsed.data, payload } : { message: parsed.data };
}

export const operations = [
  'hello',
  'all-reduce',
  'all-gather',
  'broadcast',
  'barrier',
  'round-trip',
  'gave-up',
] as const;
export type Operation = (typeof operations)[number];

/** The header of a collective frame. All counts fit 32 bits; `source` and `step` fit 16. */
export interface CollectiveHeader {
  readonly operation: Operation;
  /** Same on all ranks of one group, different in another: strangers' frames are dropped. */
  readonly groupTag: number;
  readonly epoch: number;
  readonly sequence: number;
  readonly source: number;
  /** Of the algorithm: 0 .. 2 (worldSize - 1) in a ring. */
  readonly step: number;
  /** Elements of the whole operation, the same on all ranks. */
  readonly total: number;
  /** Elements of this transfer that earlier frames carried: long transfers are cut. */
  readonly offset: number;
}

export interface CollectiveFrame {
  readonly header: CollectiveHeader;
  readonly data: Float32Array;
  /** What the data took on the wire. */
  readonly bytes: number;
}

const magic = 0x41_4c_50_54; // the bytes 'TPLA'
/** Codes of element types; 0 is none. */
const elementTypes = [undefined, ...payloadNames] as const;
/** A multiple of 4, so that the data behind it can be viewed as float32. */
export const headerBytes = 36;
const checksumAt = 32;
/** Of gave-up: why. A multiple of 4 */
const textBytes = 1024;

/** @returns a new buffer: ZeroMQ reads it after send() has returned, nobody may write it again. */
export function encodeCollective(header: CollectiveHeader, data: Float32Array, payload: Payload = 'f32'): Buffer {
  const frame = Buffer.allocUnsafe(headerBytes + payloadBytes(data.length, payload));
  frame.writeUInt32LE(magic, 0);
  frame.writeUInt16LE(protocolVersion, 4);
  frame.writeUInt8(operations.indexOf(header.operation), 6);
  frame.writeUInt8(elementTypes.indexOf(payload), 7);
  frame.writeUInt32LE(header.groupTag, 8);
  frame.writeUInt32LE(header.epoch, 12);
  frame.writeUInt32LE(header.sequence, 16);
  frame.writeUInt16LE(header.source, 20);
  frame.writeUInt16LE(header.step, 22);
  frame.writeUInt32LE(header.total, 24);
  frame.writeUInt32LE(header.offset, 28);
  encodePayload(data, payload, frame.subarray(headerBytes));
  frame.writeUInt32LE(checksumOf(frame), checksumAt);
  return frame;
}

/**
 * @throws FrameError naming what is wrong; a DamagedFrame where only the checksum is. `data` is a view of the frame where
 * its alignment allows.
 */
export function decodeCollective(frame: Buffer): CollectiveFrame {
  if (frame.length < headerBytes) throw new FrameError(`${frame.length} B, a header has ${headerBytes}`);
  if (frame.readUInt32LE(0) !== magic) throw new FrameError('not a tpla frame');
  const version = frame.readUInt16LE(4);
  if (version !== protocolVersion) throw new FrameError(`protocol ${version}, expected ${protocolVersion}`);
  const operation = operations[frame.readUInt8(6)];
  if (!operation) throw new FrameError(`unknown operation ${frame.readUInt8(6)}`);
  const payload = elementTypes[frame.readUInt8(7)];
  if (!payload) throw new FrameError(`unknown element type ${frame.readUInt8(7)}`);
  const header = {
    operation,
    groupTag: frame.readUInt32LE(8),
    epoch: frame.readUInt32LE(12),
    sequence: frame.readUInt32LE(16),
    source: frame.readUInt16LE(20),
    step: frame.readUInt16LE(22),
    total: frame.readUInt32LE(24),
    offset: frame.readUInt32LE(28),
  };
  const body = frame.subarray(headerBytes);
  const elements = payloadElements(body.length, payload);
  if (elements === null) throw new FrameError(`payload of ${body.length} B is not a whole number of ${payload}`);
  if (frame.readUInt32LE(checksumAt) !== checksumOf(frame)) throw new DamagedFrame(header);
  if (payload === 'f32') return { header, data: floatsOf(body), bytes: body.length };
  const data = new Float32Array(elements);
  decodePayload(body, payload, data);
  return { header, data, bytes: body.length };
}

function checksumOf(frame: Buffer): number {
  return crc32(frame.subarray(headerBytes), crc32(frame.subarray(0, checksumAt)));
}

export function bytesOf(data: Float32Array): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** Text as a payload, cut where it is longer than we send. */
export function floatsOfText(text: string): Float32Array {
  const bytes = new Uint8Array(textBytes);
  new TextEncoder().encodeInto(text, bytes);
  return new Float32Array(bytes.buffer);
}

export function textOfFloats(data: Float32Array): string {
  const bytes = bytesOf(data).subarray(0, textBytes);
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end === -1 ? bytes : bytes.subarray(0, end));
}

/** A view where `bytes` is aligned, otherwise a copy. */
function floatsOf(bytes: Buffer): Float32Array {
  if (bytes.length % 4 !== 0) throw new FrameError(`payload of ${bytes.length} B is not a whole number of float32`);
  if (bytes.byteOffset % 4 === 0) return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  return new Float32Array(Uint8Array.from(bytes).buffer);
}
