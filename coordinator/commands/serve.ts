/**
 * `tpla serve [cluster.yaml]`: the cluster of a file, the OpenAI-compatible API and the web page, until stopped. SIGTERM
 * and Ctrl-C let running requests end. Read next: ../http/server.ts, ../serving.ts.
 */
import { once } from 'node:events';
import type { Argv } from 'yargs';
import { ConfigError, messageOf } from '../../config/errors.ts';
import type { CommandContext } from '../command-context.ts';
import {
  chatTemplateFlag,
  clusterFilePositional,
  clusterFlags,
  configFileOf,
  jsonFlag,
  number,
  type FlagsOf,
} from '../flags.ts';
import { convertFlag } from '../convert/conversion-flags.ts';
import { createServer } from '../http/server.ts';
import { isLoopback, parseListen } from '../http/listen-address.ts';
import { LoadingProgress } from '../progress.ts';
import { startServing, type Serving } from '../serving.ts';
import { openModel } from '../session.ts';

const serveFlags = <T>(command: Argv<T>) =>
  convertFlag(jsonFlag(clusterFlags(command)))
    .positional('file', clusterFilePositional)
    .option('listen', {
      type: 'string',
      describe:
        'address and port of the server; port 0: any free one (default: that of the cluster file, else 127.0.0.1:8080)',
    })
    .option('model-name', {
      type: 'string',
      describe: "what clients call the model (default: the file's or folder's name)",
    })
    .option('chat-template', chatTemplateFlag)
    .option('slots', {
      type: 'number',
      requiresArg: true,
      describe: 'requests that run at once, 1 to 256; each takes a context of cache (default: 4)',
    })
    .option('max-queue', number('max-queue', 0, 100_000, true, 64, 'requests that may wait; more get status 429'))
    .option('drain-seconds', number('drain-seconds', 0, 86_400, false, 30, 'time for running requests when stopped'))
    .option('cors-origin', {
      type: 'string',
      describe:
        'web origin whose pages may call the API, `*` for any (default: that of the cluster file, else only the own page)',
    })
    .option('allow-no-api-key', {
      type: 'boolean',
      default: false,
      describe: 'listen beyond this machine without an API key: anyone who reaches the port may use the model',
    });

type ServeFlags = FlagsOf<ReturnType<typeof serveFlags>>;

export function addServeCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'serve [file]',
    'serve the OpenAI-compatible API and the web page on a cluster, until stopped',
    (command) => serveFlags(command),
    (flags) => serve(flags, context),
  );
}

async function serve(flags: ServeFlags, context: CommandContext): Promise<void> {
  await using model = await openModel({ ...flags, config: configFileOf(flags) }, context);
  const { api, cache } = model.config;
  const address = parseListen(flags.listen ?? api.listen, flags.listen === undefined ? 'api.listen' : '--listen');
  const apiKey = apiKeyOf(context, api.apiKeyEnv);
  if (apiKey === undefined && !isLoopback(address.host) && !flags.allowNoApiKey)
    throw new ConfigError(
      `${address.host} can be reached from other machines and there is no API key; set ${api.apiKeyEnv}, listen on ` +
        '127.0.0.1, or say --allow-no-api-key',
    );
  const loading = new LoadingProgress();
  await using serving = await startServing({
    config: { ...model.config, cache: { ...cache, slots: slotsOf(flags.slots) ?? cache.slots } },
    checkpoint: model.checkpoint,
    chatTemplateFile: flags.chatTemplate,
    maxQueued: flags.maxQueue,
    log: context.log,
    onLoading: loading.report,
    signal: context.signal,
  }).finally(() => loading[Symbol.dispose]());
  const server = createServer({
    ...serving,
    modelNames: [flags.modelName ?? serving.modelName, ...(model.config.model === 'default' ? ['default'] : [])],
    created: Math.floor(Date.now() / 1000),
    apiKey,
    corsOrigin: (flags.corsOrigin ?? api.corsOrigin) || undefined,
  });
  const url = await listen(server, address);
  announce(serving, url, flags.json, context);
  if (!context.signal.aborted) await once(context.signal, 'abort');
  const { running } = serving.scheduler;
  if (running > 0) context.log(`waiting up to ${flags.drainSeconds} s for ${running} running requests`);
  await server.stop(flags.drainSeconds * 1000);
}

function apiKeyOf({ env }: CommandContext, name: string): string | undefined {
  const key = env[name];
  return key === undefined || key === '' ? undefined : key;
}

function slotsOf(slots: number | undefined): number | undefined {
  if (slots === undefined || (Number.isInteger(slots) && slots >= 1 && slots <= 256)) return slots;
  throw new ConfigError(`--slots: expected a whole number 1 to 256, got ${slots}`);
}

/** @throws ConfigError when the address is in use or not of this machine */
async function listen(
  server: ReturnType<typeof createServer>,
  { host, port }: { host: string; port: number },
): Promise<string> {
  try {
    return await server.listen(host, port);
  } catch (cause) {
    throw new ConfigError(`cannot listen on ${host}:${port}: ${messageOf(cause)}; choose another with --listen`, {
      cause,
    });
  }
}

function announce({ supervisor }: Serving, url: string, json: boolean, context: CommandContext): void {
  const ranks = supervisor.cluster.ranks.map(({ rank, pid, host }) => ({ rank, pid, host }));
  if (json) context.write(`${JSON.stringify({ ready: true, url, pid: process.pid, ranks })}\n`);
  else context.write(`ready: ${url} (web page), ${url}/v1 (OpenAI API); Ctrl-C stops\n`);
}
