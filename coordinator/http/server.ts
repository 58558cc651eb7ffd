/**
 * The HTTP server: OpenAI-compatible routes, status and the web page, on one cluster. Asks for the API key, turns every
 * error into OpenAI's shape, and stops gracefully. Read next: chat.ts (a request's way), ../scheduler.ts (its work).
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { once } from 'node:events';
import { setTimeout as after } from 'node:timers/promises';
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import { ApiError, StoppingError, toApiError } from './api-error.ts';
import { addChatRoute } from './chat.ts';
import { addCompletionRoute } from './completions.ts';
import type { ServerParts } from './parts.ts';
import { retryAfterSeconds } from './retry-after.ts';
import { addStatusRoutes } from './status-routes.ts';
import { addTextRoutes } from './text-routes.ts';
import { addWebRoutes, publicPaths } from './web-routes.ts';

/** Larger bodies are refused with 413: a context of a million tokens as text, and room. */
export const maxBodyBytes = 8 * 1024 * 1024;

const lingerMs = 500;
const discardMs = 5000;

export interface HttpServer {
  /** @returns the URL that it listens on  @throws ConfigError-like errors of the system, such as EADDRINUSE */
  listen(host: string, port: number): Promise<string>;
  /** Refuses new requests, lets those that run end, for at most `patienceMs`, then closes. */
  stop(patienceMs: number): Promise<void>;
}

export function createServer(parts: ServerParts): HttpServer {
  let isStopping = false;
  const server = fastify({ bodyLimit: maxBodyBytes, logger: false, forceCloseConnections: 'idle' });
  // Browsers may send text/plain to any host without asking; JSON they may not.
  server.removeContentTypeParser('text/plain');
  addHooks(server, parts, () => isStopping);
  addStatusRoutes(server, parts, () => isStopping);
  addTextRoutes(server, parts);
  addChatRoute(server, parts);
  addCompletionRoute(server, parts);
  addWebRoutes(server);
  return {
    listen: (host, port) => server.listen({ host, port }),
    async stop(patienceMs) {
      isStopping = true;
      parts.scheduler.close(new StoppingError());
      let timer: NodeJS.Timeout | undefined;
      const late = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, patienceMs);
      });
      await Promise.race([parts.scheduler.idle(), late]);
      clearTimeout(timer);
      await parts.scheduler[Symbol.asyncDispose]();
      // What was answered may still be on its way; a connection that stays open after that has nothing to say.
      const linger = setTimeout(() => server.server.closeAllConnections(), lingerMs);
      await server.close();
      clearTimeout(linger);
    },
  };
}

function addHooks(server: FastifyInstance, parts: ServerParts, isStopping: () => boolean): void {
  server.addHook('onRequest', async (request, reply) => {
    if (parts.corsOrigin !== undefined) allowOrigin(parts.corsOrigin, reply);
    if (request.method === 'OPTIONS' && parts.corsOrigin !== undefined) return reply.status(204).send();
    const [path] = request.url.split('?');
    if (path === '/health' || publicPaths.has(path ?? '')) return undefined;
    requireKey(parts.apiKey, request);
    if (isStopping() && request.method === 'POST') throw new StoppingError();
    return undefined;
  });
  server.addHook('onResponse', async (request, reply) => {
    parts.metrics.request(request.routeOptions.url ?? 'none', reply.statusCode);
  });
  server.setErrorHandler(async (error, request, reply) => {
    const apiError = toApiError(error, retryAfterSeconds(parts));
    if (apiError.status === 413) await discardBody(request);
    return sendError(reply, apiError);
  });
  server.setNotFoundHandler((request, reply) => sendError(reply, notFound(server, request)));
}

/** 405 where the path is right and the method is not. */
function notFound(server: FastifyInstance, { method, url }: FastifyRequest): ApiError {
  const [path = ''] = url.split('?');
  const allow = ['GET', 'POST'].filter((other) => server.hasRoute({ method: other, url: path })).join(', ');
  if (allow === '') return new ApiError(404, `${method} ${path}: no such route`, { code: 'unknown_url' });
  const message = `${method} ${path}: not a method of this route; use ${allow}`;
  return new ApiError(405, message, { code: 'method_not_allowed', headers: { allow } });
}

/** A client that is still sending when the connection closes sees a broken pipe instead of the answer. */
async function discardBody({ raw }: FastifyRequest): Promise<void> {
  if (raw.complete || raw.destroyed) return;
  raw.resume();
  const stop = new AbortController();
  const { signal } = stop;
  const ignore = (): undefined => undefined;
  await Promise.race([
    once(raw, 'end', { signal }).catch(ignore),
    once(raw, 'close', { signal }).catch(ignore),
    after(discardMs, undefined, { signal }).catch(ignore),
  ]);
  stop.abort();
}

function sendError(reply: FastifyReply, error: ApiError): FastifyReply {
  return reply.status(error.status).headers(error.headers).send(error.body);
}

function allowOrigin(origin: string, reply: FastifyReply): void {
  reply.headers({
    'access-control-allow-origin': origin,
    'access-control-allow-headers': 'authorization, content-type',
    'access-control-allow-methods': 'GET, POST, OPTIONS',
    vary: 'Origin',
  });
}

/** Digests have one length and are compared in constant time: an answer's time says nothing about the key. */
function requireKey(key: string | undefined, request: FastifyRequest): void {
  if (key === undefined) return;
  const given = /^Bearer (.+)$/i.exec(request.headers.authorization ?? '')?.[1] ?? '';
  const digest = (text: string): Buffer => createHash('sha256').update(text).digest();
  if (timingSafeEqual(digest(given), digest(key))) return;
  throw new ApiError(401, given === '' ? 'no API key; send the header `Authorization: Bearer KEY`' : 'wrong API key', {
    code: 'invalid_api_key',
    headers: { 'www-authenticate': 'Bearer' },
  });
}
