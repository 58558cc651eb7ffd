/** Where the server listens: `host:port`, IPv6 in brackets. Pure. */
import { ConfigError } from '../../config/errors.ts';

/** @param where the key or flag, for the refusal  @throws ConfigError */
export function parseListen(text: string, where: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]/\s]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  const host = match?.[1] ?? match?.[2];
  if (host !== undefined && port <= 65_535) return { host, port };
  throw new ConfigError(
    `${where}: expected host:port such as 127.0.0.1:8080 or [::1]:8080, got ${JSON.stringify(text)}`,
  );
}

export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(\.\d{1,3}){3}$/.test(host);
}
