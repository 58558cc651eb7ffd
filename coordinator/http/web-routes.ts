/** The web page, from files beside the program: no other host is ever asked. */
import { readFile } from 'node:fs/promises';
import type { FastifyInstance } from 'fastify';

const files = {
  '/': { name: 'index.html', type: 'text/html; charset=utf-8' },
  '/style.css': { name: 'style.css', type: 'text/css; charset=utf-8' },
  '/app.js': { name: 'app.js', type: 'text/javascript; charset=utf-8' },
  '/chat.js': { name: 'chat.js', type: 'text/javascript; charset=utf-8' },
  '/cluster.js': { name: 'cluster.js', type: 'text/javascript; charset=utf-8' },
  '/ranks.js': { name: 'ranks.js', type: 'text/javascript; charset=utf-8' },
  '/server.js': { name: 'server.js', type: 'text/javascript; charset=utf-8' },
  '/favicon.svg': { name: 'favicon.svg', type: 'image/svg+xml' },
} as const;

/** Nothing from elsewhere, no frames around it: the page may hold an API key. */
const headers = {
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cache-control': 'no-cache',
};

/** Paths that need no API key. */
export const publicPaths: ReadonlySet<string> = new Set(Object.keys(files));

export function addWebRoutes(server: FastifyInstance): void {
  for (const [path, { name, type }] of Object.entries(files))
    server.get(path, async (_request, reply) => {
      const content = await readFile(new URL(`../web/${name}`, import.meta.url));
      return reply.headers(headers).type(type).send(content);
    });
}
