/**
 * Walks over the header of a GGUF file in chunks. Each value is checked against the end of the file before it is read,
 * and counts before anything is allocated for them. A header longer than 128 MiB is refused: real ones stay below 30.
 */
import { ConfigError } from '../config/errors.ts';
import type { RangedFile } from './ranged-file.ts';

const chunkBytes = 1 << 20;
const maxHeaderBytes = 1 << 27;

export class GgufCursor {
  readonly #file: RangedFile;
  // Vocabularies hold a byte-order mark as a token, which a decoder drops unless told not to.
  readonly #text = new TextDecoder('utf-8', { ignoreBOM: true });
  #chunk: DataView = new DataView(new ArrayBuffer(0));
  #chunkStart = 0;
  #offset = 0; // in the chunk

  constructor(file: RangedFile) {
    this.#file = file;
  }

  /** Bytes from the start of the file. */
  get position(): number {
    return this.#chunkStart + this.#offset;
  }

  /** Bytes to the end of the file. */
  get remaining(): number {
    return this.#file.bytes - this.position;
  }

  error(message: string): ConfigError {
    return new ConfigError(`${this.#file.name}: ${message}`);
  }

  /** @throws ConfigError when `count` values of at least `leastBytes` each cannot fit in the rest of the file. */
  requireRemaining(count: number, leastBytes: number, what: string): void {
    if (count * leastBytes > this.remaining)
      throw this.error(`${count} ${what} announced, but only ${this.remaining} bytes are left; the file is damaged`);
  }

  u8(what: string): Promise<number> {
    return this.#read(1, what, (chunk, at) => chunk.getUint8(at));
  }
  i8(what: string): Promise<number> {
    return this.#read(1, what, (chunk, at) => chunk.getInt8(at));
  }
  u16(what: string): Promise<number> {
    return this.#read(2, what, (chunk, at) => chunk.getUint16(at, true));
  }
  i16(what: string): Promise<number> {
    return this.#read(2, what, (chunk, at) => chunk.getInt16(at, true));
  }
  u32(what: string): Promise<number> {
    return this.#read(4, what, (chunk, at) => chunk.getUint32(at, true));
  }
  i32(what: string): Promise<number> {
    return this.#read(4, what, (chunk, at) => chunk.getInt32(at, true));
  }
  f32(what: string): Promise<number> {
    return this.#read(4, what, (chunk, at) => chunk.getFloat32(at, true));
  }
  f64(what: string): Promise<number> {
    return this.#read(8, what, (chunk, at) => chunk.getFloat64(at, true));
  }
  u64(what: string): Promise<number | bigint> {
    return this.#read(8, what, (chunk, at) => narrow(chunk.getBigUint64(at, true)));
  }
  i64(what: string): Promise<number | bigint> {
    return this.#read(8, what, (chunk, at) => narrow(chunk.getBigInt64(at, true)));
  }

  /** A 64-bit count, length or offset. @throws ConfigError beyond 2^53: no file is that long. */
  async count(what: string): Promise<number> {
    const value = await this.u64(what);
    if (typeof value === 'bigint') throw this.error(`${what} is ${value}; the file is damaged`);
    return value;
  }

  async string(what: string, maxBytes: number): Promise<string> {
    const length = await this.count(`the length of ${what}`);
    if (length > maxBytes) throw this.error(`${what} is ${length} bytes long, at most ${maxBytes} are possible here`);
    return this.#read(length, what, (chunk, at) =>
      this.#text.decode(new Uint8Array(chunk.buffer, chunk.byteOffset + at, length)),
    );
  }

  /** Passes over bytes without reading them. */
  skip(length: number, what: string): void {
    if (length > this.remaining) throw this.#endsInside(what, length);
    if (this.#offset + length <= this.#chunk.byteLength) {
      this.#offset += length;
      return;
    }
    this.#chunkStart = this.position + length;
    this.#offset = 0;
    this.#chunk = new DataView(new ArrayBuffer(0));
  }

  async #read<T>(length: number, what: string, get: (chunk: DataView, at: number) => T): Promise<T> {
    if (this.#offset + length > this.#chunk.byteLength) await this.#refill(length, what);
    const at = this.#offset;
    this.#offset += length;
    return get(this.#chunk, at);
  }

  async #refill(length: number, what: string): Promise<void> {
    const start = this.position;
    if (length > this.remaining) throw this.#endsInside(what, length);
    if (start + length > maxHeaderBytes)
      throw this.error(`the header is longer than ${maxHeaderBytes} bytes (at ${what}); the file is damaged`);
    const bytes = await this.#file.read(start, Math.min(Math.max(length, chunkBytes), this.remaining), what);
    this.#chunk = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#chunkStart = start;
    this.#offset = 0;
  }

  #endsInside(what: string, length: number): ConfigError {
    return this.error(
      `file ends inside ${what}: ${length} bytes needed, ${this.remaining} left; is the download complete?`,
    );
  }
}

function narrow(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
