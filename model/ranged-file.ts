/**
 * A file read by byte ranges: positions are 64-bit, so files beyond 4 GiB are fine, and every read is either complete
 * or a ConfigError. It never caches and never writes. Used by gguf.ts and safetensors.ts for headers and weights.
 */
import { open, type FileHandle } from 'node:fs/promises';
import { basename } from 'node:path';
import { ConfigError, messageOf } from '../config/errors.ts';

/** One read call must stay below 2 GiB. */
const maxReadBytes = 1 << 30;

export class RangedFile implements AsyncDisposable {
  readonly path: string;
  readonly bytes: number;
  readonly #handle: FileHandle;

  private constructor(path: string, bytes: number, handle: FileHandle) {
    this.path = path;
    this.bytes = bytes;
    this.#handle = handle;
  }

  /** @throws ConfigError when the path cannot be read or is not a file. */
  static async open(path: string): Promise<RangedFile> {
    let handle: FileHandle;
    try {
      handle = await open(path, 'r');
    } catch (cause) {
      throw new ConfigError(`model: cannot open ${path}: ${messageOf(cause)}`, { cause });
    }
    try {
      const stat = await handle.stat();
      if (!stat.isFile()) throw new ConfigError(`model: ${path} is not a file`);
      return new RangedFile(path, stat.size, handle);
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /** File name without its folder, for messages. */
  get name(): string {
    return basename(this.path);
  }

  /** @throws ConfigError when the range does not lie in the file; `what` names its content in the message. */
  async read(offset: number, length: number, what: string): Promise<Uint8Array> {
    if (offset + length > this.bytes) throw this.#tooShort(what, offset + length, this.bytes);
    const bytes = new Uint8Array(length);
    let filled = 0;
    while (filled < length) {
      const wanted = Math.min(maxReadBytes, length - filled);
      const { bytesRead } = await this.#handle.read(bytes, filled, wanted, offset + filled);
      if (bytesRead === 0) throw this.#tooShort(what, offset + length, offset + filled);
      filled += bytesRead;
    }
    return bytes;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }

  #tooShort(what: string, neededBytes: number, haveBytes: number): ConfigError {
    return new ConfigError(
      `${this.name}: file ends inside ${what}: needs ${neededBytes} bytes, has ${haveBytes}; is the download complete?`,
    );
  }
}
