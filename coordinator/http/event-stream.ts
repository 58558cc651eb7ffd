/**
 * Server-sent events on one response: headers with the first event, one `data:` line each, `[DONE]` at the end. Waits
 * where the client reads slowly, so that a stalled client holds no growing buffer. Read next: answers.ts, the writer.
 */
import { once } from 'node:events';
import type { FastifyReply } from 'fastify';
import type { ApiError } from './api-error.ts';

export class EventStream {
  readonly #reply: FastifyReply;
  #begun = false;

  constructor(reply: FastifyReply) {
    this.#reply = reply;
  }

  /** Whether a status has been sent: from then on an error is an event. */
  get begun(): boolean {
    return this.#begun;
  }

  async send(data: object): Promise<void> {
    await this.#write(JSON.stringify(data));
  }

  /** The last event of an answer that went wrong after its beginning. */
  async fail(error: ApiError): Promise<void> {
    await this.send(error.body);
    this.#reply.raw.end();
  }

  async end(): Promise<void> {
    await this.#write('[DONE]');
    this.#reply.raw.end();
  }

  async #write(data: string): Promise<void> {
    const { raw } = this.#reply;
    if (raw.destroyed) return;
    this.#begin();
    // Closing ends the wait too: what is written to a client that has gone goes nowhere.
    if (!raw.write(`data: ${data}\n\n`)) await Promise.race([once(raw, 'drain'), once(raw, 'close')]);
  }

  #begin(): void {
    if (this.#begun) return;
    this.#begun = true;
    this.#reply.hijack();
    this.#reply.raw.writeHead(200, {
      ...definedHeaders(this.#reply),
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      // Proxies such as nginx would collect the events.
      'x-accel-buffering': 'no',
    });
  }
}

/** Headers that hooks have put on the reply. */
function definedHeaders(reply: FastifyReply): Record<string, string | number | string[]> {
  const headers: Record<string, string | number | string[]> = {};
  for (const [name, value] of Object.entries(reply.getHeaders())) if (value !== undefined) headers[name] = value;
  return headers;
}
