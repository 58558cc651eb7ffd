/** Connections that mean no good, or nothing: what they send and how they end is drawn by a seeded generator. */
import { connect, type Socket } from 'node:net';
import { mutatedCollective, mutatedMessage, sampleMessages, type Random } from './mutate.ts';

/** At once. */
const concurrency = 24;
/** Those who wait for an answer, or leave half a handshake, go after this long. */
const patienceMs = 300;
/** Connections that are kept open and silent. */
const idleConnections = 40;

export class Strangers {
  readonly #random: Random;
  readonly #messages = sampleMessages();
  readonly #idle: Socket[] = [];

  constructor(random: Random) {
    this.#random = random;
  }

  /** Resolves when so many connections have been made and, the idle ones aside, have ended. */
  async visit(port: number, count: number): Promise<void> {
    let left = count;
    const one = async (): Promise<void> => {
      while (left-- > 0) await this.#connect(port);
    };
    await Promise.all(Array.from({ length: concurrency }, one));
  }

  leave(): void {
    for (const socket of this.#idle.splice(0)) socket.destroy();
  }

  #connect(port: number): Promise<void> {
    const random = this.#random;
    const socket = connect(port, '127.0.0.1');
    const bytes = this.#words();
    const manner = random();
    return new Promise((resolve) => {
      const timer = setTimeout(() => socket.destroy(), patienceMs);
      socket.on('error', () => undefined);
      socket.on('close', () => {
        clearTimeout(timer);
        resolve();
      });
      socket.resume();
      socket.on('connect', () => {
        if (bytes.length > 0) socket.write(bytes);
        if (manner < 0.1) {
          clearTimeout(timer);
          this.#keep(socket);
          resolve();
        } else if (manner < 0.2) socket.resetAndDestroy();
        else if (manner < 0.7) socket.end();
      });
    });
  }

  #keep(socket: Socket): void {
    this.#idle.push(socket);
    if (this.#idle.length > idleConnections) this.#idle.shift()?.destroy();
  }

  #words(): Buffer {
    const random = this.#random;
    switch (Math.floor(random() * 7)) {
      case 0:
        return Buffer.alloc(0);
      case 1:
        return noise(random, 300);
      case 2:
        return Buffer.concat([greeting, noise(random, 200)]);
      case 3:
        // A frame of four exabytes.
        return Buffer.concat([
          greeting,
          ready(random),
          Buffer.from([0x02, 0x40, 0, 0, 0, 0, 0, 0, 0]),
          noise(random, 100),
        ]);
      case 4:
        return Buffer.concat([greeting, ready(random), ...zmtpFrames(mutatedMessage(this.#messages, random))]);
      case 5:
        return Buffer.concat([greeting, ready(random), ...zmtpFrames([mutatedCollective(random)])]);
      default:
        return Buffer.from(httpText(random));
    }
  }
}

/** ZMTP 3.0 (ZeroMQ RFC 23): signature, version, mechanism NULL, not a server, filler. 64 bytes. */
const greeting = Buffer.concat([
  Buffer.from([0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0]),
  Buffer.from('NULL'.padEnd(20, '\0')),
  Buffer.alloc(32),
]);

/** The command that ends a NULL handshake. */
function ready(random: Random): Buffer {
  const type = ['DEALER', 'PUSH', 'ROUTER', 'PUB'][Math.floor(random() * 4)] ?? 'REQ';
  const name = 'Socket-Type';
  const size = Buffer.from([0, 0, 0, type.length]);
  const body = Buffer.concat([
    Buffer.from([5]),
    Buffer.from('READY'),
    Buffer.from([name.length]),
    Buffer.from(name),
    size,
    Buffer.from(type),
  ]);
  return Buffer.concat([Buffer.from([0x04, body.length]), body]);
}

/** Long frames, more to come after all but the last. */
function zmtpFrames(frames: readonly Buffer[]): Buffer[] {
  return frames.map((frame, i) => {
    const head = Buffer.alloc(9);
    head.writeUInt8(i < frames.length - 1 ? 3 : 2, 0);
    head.writeBigUInt64BE(BigInt(frame.length), 1);
    return Buffer.concat([head, frame]);
  });
}

function httpText(random: Random): string {
  const body = '{"prompt":' + '['.repeat(Math.floor(random() * 500));
  const texts = [
    'GET / HTTP/1.1\r\n',
    `GET /${'../'.repeat(20)}etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n`,
    `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    'POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 999999999999\r\n\r\n{',
    `GET /health HTTP/1.1\r\nhost: x\r\nx-long: ${'y'.repeat(20_000)}\r\n\r\n`,
    'BREW /pot HTCPCP/1.0\r\n\r\n',
  ];
  return texts[Math.floor(random() * texts.length)] ?? '';
}

function noise(random: Random, most: number): Buffer {
  return Buffer.from(Array.from({ length: Math.ceil(random() * most) }, () => Math.floor(random() * 256)));
}
