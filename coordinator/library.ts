/**
 * The library: `import { startCluster } from 'tpla'`. Starts ranks on this machine, generates, stops. Everything that the
 * package exports is here; docs/library.md shows it in use. Read next: serving.ts, which the server stands on too.
 */
import { randomInt } from 'node:crypto';
import { loadClusterConfig, type ClusterFlags } from '../config/load.ts';
import { openCheckpoint } from '../model/open.ts';
import { resolveModel } from './fetch.ts';
import type { GenerationEvent } from './generation.ts';
import { startServing, type Serving } from './serving.ts';

export { ConfigError, InvariantError, PeerError } from '../config/errors.ts';
export type { FinishReason, GenerationEvent, TokenLogprobs, Usage } from './generation.ts';

export interface StartOptions extends ClusterFlags {
  /** Cluster file; the other fields override it. */
  readonly config?: string;
  /** A file with the chat template to use instead of the model's own. */
  readonly chatTemplate?: string;
  /** Generations that run at once; each takes a context of cache. Default: the file's, else 4. */
  readonly slots?: number;
  /** Generations that may wait for a slot; more are refused. Default 1024. */
  readonly maxQueued?: number;
  /** Gets one line for each thing worth telling, such as a rank that was lost. Default: nothing is said. */
  readonly log?: (line: string) => void;
  /** Ends the start. */
  readonly signal?: AbortSignal;
}

export interface ChatMessage {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

export interface GenerateOptions {
  /** A text to go on with, or messages to answer through the model's chat template. */
  readonly prompt: string | readonly ChatMessage[];
  /** Default 256; never more than the context has room for. */
  readonly maxTokens?: number;
  /** 0, the default: always the most likely token. */
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repeatPenalty?: number;
  /** The same seed gives the same text. Default: random. */
  readonly seed?: number;
  /** Texts that end the answer and are not part of it. */
  readonly stop?: readonly string[];
  /** Most likely tokens to report beside each generated one. */
  readonly topLogprobs?: number;
  /** Ends the generation within one step; its events then end with the signal's reason. */
  readonly signal?: AbortSignal;
}

export interface RunningCluster extends AsyncDisposable {
  readonly scheme: string;
  /** Tokens of prompt and answer together. */
  readonly contextTokens: number;
  readonly ranks: readonly { readonly rank: number; readonly pid: number; readonly host: string }[];
  /**
   * Events as they come: tokens with the text that each completes, then one end with usage. Several generations may run
   * at once. Leaving the loop early ends the generation.
   * @throws ConfigError when the prompt does not fit; PeerError when ranks fail for good
   */
  generate(options: GenerateOptions): AsyncGenerator<GenerationEvent, void>;
  /** Token ids of a text, nothing added. */
  tokenize(text: string): number[];
  /** Ends all ranks; returns when they are gone and nothing of them is left. */
  stop(): Promise<void>;
}

/**
 * Starts a cluster on this machine. Every option of the command line has its field: model, ranks, scheme, context ...
 * @throws ConfigError for what the caller can fix; PeerError when a rank dies while starting. Nothing is left behind then.
 */
export async function startCluster(options: StartOptions): Promise<RunningCluster> {
  const log = options.log ?? ((): void => undefined);
  const signal = options.signal ?? new AbortController().signal;
  const model = options.model ?? (options.config === undefined ? 'default' : undefined);
  const config = await loadClusterConfig({ file: options.config, flags: { ...options, model } });
  const checkpoint = await openCheckpoint(await resolveModel(config.model, { env: process.env, log, signal }));
  try {
    const slots = options.slots ?? config.cache.slots;
    const serving = await startServing({
      config: { ...config, cache: { ...config.cache, slots } },
      checkpoint,
      chatTemplateFile: options.chatTemplate,
      maxQueued: options.maxQueued ?? 1024,
      log,
      signal,
    });
    return running(serving, async () => {
      await serving[Symbol.asyncDispose]();
      await checkpoint[Symbol.asyncDispose]();
    });
  } catch (error) {
    await checkpoint[Symbol.asyncDispose]();
    throw error;
  }
}

function running({ supervisor, scheduler, text }: Serving, end: () => Promise<void>): RunningCluster {
  let ended: Promise<void> | undefined;
  const stop = (): Promise<void> => (ended ??= end());
  return {
    scheme: supervisor.cluster.plan.scheme,
    contextTokens: supervisor.options.contextTokens,
    ranks: supervisor.cluster.ranks.map(({ rank, pid, host }) => ({ rank, pid, host })),
    tokenize: (content) => text.encode(content),
    generate: (options) =>
      scheduler.submit({
        promptIds:
          typeof options.prompt === 'string'
            ? text.encodeRaw(options.prompt)
            : text.tokenizer.encode(text.renderChat(options.prompt)),
        sampling: {
          temperature: options.temperature ?? 0,
          topK: options.topK ?? 40,
          topP: options.topP ?? 0.95,
          minP: options.minP ?? 0.05,
          repeatPenalty: options.repeatPenalty ?? 1,
        },
        seed: options.seed ?? randomInt(2 ** 32),
        maxTokens: options.maxTokens ?? 256,
        stop: options.stop ?? [],
        endIds: text.endIds,
        text: text.newStream(),
        topLogprobs: options.topLogprobs,
        signal: options.signal,
      }),
    stop,
    [Symbol.asyncDispose]: stop,
  };
}
