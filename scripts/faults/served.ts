/** A `tpla serve` of its own for these scripts: its cluster file, temporary folder, processes and one greedy answer. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';

const readySchema = z.object({ ready: z.literal(true), url: z.string(), pid: z.number() });
const healthSchema = z.object({
  status: z.string(),
  ranks: z.array(z.object({ rank: z.number(), pid: z.number(), state: z.string(), restarts: z.number() })),
});
const completionSchema = z.object({ choices: z.tuple([z.object({ text: z.string() })]) });
export type Health = z.infer<typeof healthSchema>;

export interface Served extends AsyncDisposable {
  readonly url: string;
  readonly pid: number;
  readonly controlPort: number;
  /** TMPDIR of all processes. */
  readonly folder: string;
  /** What is left in it besides the cluster file. */
  leftovers(): string[];
  health(): Promise<Health>;
  /** Greedy text. @throws what the server said */
  answer(prompt: string, maxTokens: number): Promise<string>;
  readonly worker: ChildProcess | undefined;
  readonly server: ChildProcess;
}

export interface ServedOptions {
  readonly model: string;
  /** Of each rank: local or join; one worker is started for those that join. */
  readonly hosts: readonly ('local' | 'join')[];
  readonly faults?: object;
}

/** The compiled program, also when this file runs from source (tests). */
const built = import.meta.url.endsWith('.ts') ? '../../dist/coordinator/main.js' : '../../coordinator/main.js';
const program = fileURLToPath(new URL(built, import.meta.url));

export async function startServed({ model, hosts, faults = {} }: ServedOptions): Promise<Served> {
  const folder = mkdtempSync(join(tmpdir(), 'tpla-faults-'));
  const isRemote = hosts.includes('join');
  const controlPort = isRemote ? await freePort() : 0;
  const address = `tcp://127.0.0.1:${controlPort}`;
  const file = join(folder, 'cluster.json');
  const coordinator = isRemote ? { bind: address } : {};
  const cluster = { model, ranks: hosts.map((host) => ({ host })), coordinator, cache: { contextTokens: 256 }, faults };
  writeFileSync(file, JSON.stringify(cluster));
  const env = { ...process.env, TMPDIR: folder };
  const worker = isRemote ? spawnProgram(['worker', '--join', address, '--model', model], env) : undefined;
  const server = spawnProgram(['serve', file, '--listen', '127.0.0.1:0', '--json'], env);
  const end = async (): Promise<void> => {
    for (const child of [server, worker]) await ended(child);
    rmSync(folder, { recursive: true, force: true });
  };
  const { url, pid } = await readyLine(server).catch(async (error: unknown) => {
    await end();
    throw error;
  });
  return {
    url,
    pid,
    controlPort,
    folder,
    worker,
    server,
    leftovers: () => readdirSync(folder).filter((name) => name !== 'cluster.json'),
    health: async () => healthSchema.parse(await (await fetch(`${url}/health`)).json()),
    async answer(prompt, maxTokens) {
      const body = JSON.stringify({ prompt, max_tokens: maxTokens, temperature: 0 });
      const headers = { 'content-type': 'application/json' };
      const response = await fetch(`${url}/v1/completions`, { method: 'POST', body, headers });
      const text = await response.text();
      if (!response.ok) throw new Error(`${response.status} ${text}`);
      return completionSchema.parse(JSON.parse(text)).choices[0].text;
    },
    [Symbol.asyncDispose]: end,
  };
}

function spawnProgram(args: readonly string[], env: NodeJS.ProcessEnv): ChildProcess {
  return spawn(process.execPath, [program, ...args], { env, stdio: ['ignore', 'pipe', 'pipe'] });
}

async function ended(child: ChildProcess | undefined): Promise<void> {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, 'exit');
  child.kill('SIGTERM');
  await exit;
}

function readyLine(server: ChildProcess): Promise<z.infer<typeof readySchema>> {
  return new Promise((resolve, reject) => {
    let [stdout, stderr] = ['', ''];
    server.stdout?.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      const [line, rest] = stdout.split('\n');
      if (rest !== undefined && line !== undefined) resolve(readySchema.parse(JSON.parse(line)));
    });
    server.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr = (stderr + text).slice(-4000)));
    server.once('exit', () => reject(new Error(`the server ended: ${stderr}`)));
  });
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  return typeof address === 'object' && address !== null ? address.port : 0;
}
