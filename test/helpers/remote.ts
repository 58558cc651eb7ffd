/** Clusters whose ranks join from outside: a coordinator in this process, `tpla worker` in processes of its own. */
import { once } from 'node:events';
import { createServer } from 'node:net';
import { clusterSchema, type ClusterConfig } from '../../config/cluster.ts';
import type { Running, Sandbox } from './program.ts';

/** A port of 127.0.0.1 that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  return typeof address === 'object' && address !== null ? address.port : 0;
}

export interface RemoteSettings {
  readonly model: string;
  readonly port: number;
  /** Of each rank. */
  readonly hosts: readonly string[];
  readonly keys?: string;
  readonly faults?: Partial<ClusterConfig['faults']>;
  readonly joinSeconds?: number;
  readonly address?: string;
  readonly payload?: ClusterConfig['collective']['payload'];
}

export function remoteConfig(settings: RemoteSettings): ClusterConfig {
  const { model, port, hosts, keys, faults = {}, joinSeconds = 30, address = '127.0.0.1', payload = 'f32' } = settings;
  return clusterSchema.parse({
    model,
    ranks: hosts.map((host) => ({ host })),
    cache: { contextTokens: 256 },
    coordinator: { bind: `tcp://${address}:${port}`, joinSeconds },
    security: keys === undefined ? { curve: 'off' } : { curve: 'on', keys },
    collective: { payload },
    faults: { backoffMs: 0, ...faults },
  });
}

export interface Worker extends AsyncDisposable {
  readonly running: Running;
  /** Resolves when stderr holds the text `times` times; rejects when the program ends without it. */
  readonly said: (text: string, times?: number) => Promise<void>;
}

/** On this machine, but under another name, so that sums with local ranks go over sockets as they would from elsewhere. */
export function startWorker(sandbox: Sandbox, args: readonly string[], env: Record<string, string> = {}): Worker {
  const running = sandbox.start(['worker', ...args], { env: { TPLA_HOST: 'elsewhere', ...env } });
  return {
    running,
    said: watchStderr(running),
    async [Symbol.asyncDispose]() {
      running.child.kill('SIGTERM');
      await running.finished;
    },
  };
}

/** Like Running.printed, for stderr. */
export function watchStderr(running: Running): (text: string, times?: number) => Promise<void> {
  let stderr = '';
  const watchers = new Set<() => void>();
  running.child.stderr?.on('data', (text: string) => {
    stderr += text;
    watchers.forEach((look) => look());
  });
  return (text, times = 1) =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        if (stderr.split(text).length > times) resolve();
      };
      watchers.add(look);
      look();
      running.finished.then(() => reject(new Error(`ended without saying ${text}: ${stderr}`)), reject);
    });
}
