/**
 * A chat in the terminal, `tpla run` without a prompt: messages and answers in turn on one cluster, which starts a rank
 * that dies again. Answers go to stdout, everything else to stderr. Ctrl-C ends an answer, not the chat.
 * Read next: line-editor.ts, chat-commands.ts, conversation.ts, ../serving.ts.
 */
import { randomInt } from 'node:crypto';
import { ConfigError } from '../../config/errors.ts';
import type { CommandContext } from '../command-context.ts';
import type { RunRequest } from '../commands/run.ts';
import type { Generation, Usage } from '../generation.ts';
import { rankTable, reportOf, sumUsage } from '../run-report.ts';
import { startServing, type Serving } from '../serving.ts';
import { LoadingProgress } from '../progress.ts';
import { openModel } from '../session.ts';
import { formatMs } from '../table.ts';
import { chatHelp, describeSettings, parseChatCommand, type ChatCommand, type ChatSettings } from './chat-commands.ts';
import { Conversation } from './conversation.ts';
import { historyFile, readHistory, writeHistory } from './history.ts';
import { LineEditor, type Typed } from './line-editor.ts';
import { dim, type Terminal } from './terminal.ts';

/** Begins and ends a message of several lines. */
const fence = '"""';

/** @throws what starting throws; PeerError when ranks fail for good; the signal's reason */
export async function chat(flags: RunRequest, terminal: Terminal, context: CommandContext): Promise<void> {
  await using model = await openModel(flags, context);
  let say = context.log;
  const loading = new LoadingProgress();
  await using serving = await startServing({
    config: { ...model.config, cache: { ...model.config.cache, slots: 1 } },
    checkpoint: model.checkpoint,
    chatTemplateFile: flags.chatTemplate,
    // An answer that was stopped holds the slot until the step in flight ends.
    maxQueued: 1,
    log: (line) => say(line),
    onLoading: loading.report,
    signal: context.signal,
  }).finally(() => loading[Symbol.dispose]());
  const file = historyFile(context.env);
  const history = await readHistory(file);
  using editor = new LineEditor(terminal, history);
  say = (line) => editor.say(line);
  const session = new ChatSession(flags, serving, editor, terminal, context);
  try {
    await session.run();
  } finally {
    say = context.log;
    await writeHistory(file, [...history.reverse(), ...session.typed], context.log);
  }
}

class ChatSession {
  /** Single lines, oldest first. */
  readonly typed: string[] = [];
  readonly #serving: Serving;
  readonly #editor: LineEditor;
  readonly #terminal: Terminal;
  readonly #context: CommandContext;
  readonly #stop: readonly string[];
  readonly #conversation: Conversation;
  readonly #usages: Usage[] = [];
  #settings: ChatSettings;
  #leftOut = 0;
  #isLeaving = false;

  constructor(flags: RunRequest, serving: Serving, editor: LineEditor, terminal: Terminal, context: CommandContext) {
    const { temperature, topK, topP, minP, repeatPenalty, maxTokens, seed, system, raw: isRaw } = flags;
    this.#settings = { temperature, topK, topP, minP, repeatPenalty, maxTokens, seed };
    this.#stop = flags.stop ?? [];
    this.#conversation = new Conversation(serving.text, { system, isRaw });
    this.#serving = serving;
    this.#editor = editor;
    this.#terminal = terminal;
    this.#context = context;
  }

  async run(): Promise<void> {
    const { signal } = this.#context;
    const end = (): void => this.#editor[Symbol.dispose]();
    signal.addEventListener('abort', end, { once: true });
    const { plan, ranks } = this.#serving.supervisor.cluster;
    this.#hint(
      `${this.#serving.modelName}: ${plan.scheme} on ${ranks.length} ranks. /help lists the commands, Ctrl-D leaves.`,
    );
    if (this.#conversation.isRaw)
      this.#hint('Each message is continued as it is, by itself: no chat template is in use.');
    try {
      while (!this.#isLeaving) {
        const message = await this.#message();
        signal.throwIfAborted();
        if (message === undefined) break;
        const command = parseChatCommand(message);
        if (command !== undefined) await this.#obey(command);
        else if (message.trim() !== '') await this.#answer(message);
      }
    } finally {
      signal.removeEventListener('abort', end);
    }
    if (this.#usages.length > 0) this.#editor.say(`\n${this.#table()}`);
  }

  /** A line, or the lines between two fences. undefined: the end. */
  async #message(): Promise<string | undefined> {
    const first = await this.#line('> ');
    if (first.kind !== 'line') return undefined;
    if (!first.text.startsWith(fence)) return first.text;
    const lines = [first.text.slice(fence.length)];
    while (!lines.at(-1)?.endsWith(fence)) {
      const next = await this.#line('. ');
      if (next.kind !== 'line') return next.kind === 'interrupt' ? '' : undefined;
      lines.push(next.text);
    }
    return lines.join('\n').slice(0, -fence.length).trim();
  }

  async #line(prompt: string): Promise<Typed> {
    const typed = await this.#editor.read(prompt);
    if (typed.kind === 'line' && typed.text !== '') this.typed.push(typed.text);
    return typed;
  }

  async #obey(command: ChatCommand): Promise<void> {
    switch (command.kind) {
      case 'help':
        return this.#editor.say(chatHelp);
      case 'exit':
        this.#isLeaving = true;
        return undefined;
      case 'clear':
        this.#conversation.clear();
        this.#leftOut = 0;
        return this.#hint('The conversation is forgotten.');
      case 'again': {
        const question = this.#conversation.takeBack();
        return question === undefined ? this.#hint('There is no message yet.') : await this.#answer(question);
      }
      case 'ranks':
        return this.#usages.length === 0 ? this.#hint('There is no answer yet.') : this.#editor.say(this.#table());
      case 'settings':
        return this.#editor.say(describeSettings(this.#settings));
      case 'system':
        this.#conversation.system = command.text;
        return this.#hint(command.text === undefined ? 'No system message from now on.' : 'Kept from now on.');
      case 'set':
        this.#settings = { ...this.#settings, [command.name]: command.value };
        return undefined;
      case 'mistake':
        return this.#editor.say(command.message);
    }
  }

  async #answer(question: string): Promise<void> {
    this.#conversation.ask(question);
    const controller = new AbortController();
    let text = '';
    this.#editor.onInterrupt = () => {
      // Once more, while the step in flight ends: to leave.
      this.#isLeaving = controller.signal.aborted;
      controller.abort(new Error('stopped'));
    };
    const signal = AbortSignal.any([controller.signal, this.#context.signal]);
    try {
      for await (const event of this.#serving.scheduler.submit(this.#generation(signal))) {
        if (controller.signal.aborted) break;
        text += event.text;
        this.#context.write(event.text);
        if (event.kind === 'end') this.#ended(event.usage, event.finishReason === 'length');
      }
    } catch (error) {
      if (!controller.signal.aborted) this.#refuse(error);
    } finally {
      this.#editor.onInterrupt = undefined;
    }
    if (controller.signal.aborted) {
      this.#context.write('\n');
      this.#hint('(stopped)');
    }
    if (text === '') this.#conversation.takeBack();
    else this.#conversation.answered(text);
  }

  #generation(signal: AbortSignal): Generation {
    const { text, supervisor } = this.#serving;
    const { maxTokens, seed, ...sampling } = this.#settings;
    const { contextTokens } = supervisor.options;
    // Room for an answer, but not more than half of the context: a long one may use less than --max-tokens says.
    const { promptIds, leftOut } = this.#conversation.prompt(
      contextTokens - Math.min(maxTokens, Math.floor(contextTokens / 2)),
    );
    if (leftOut > this.#leftOut)
      this.#hint(`(the conversation is longer than the context: its first ${leftOut} messages are left out)`);
    this.#leftOut = leftOut;
    return {
      promptIds,
      sampling,
      seed: seed ?? randomInt(2 ** 32),
      maxTokens,
      stop: this.#stop,
      endIds: text.endIds,
      text: text.newStream(),
      signal,
    };
  }

  #ended(usage: Usage, isCut: boolean): void {
    this.#usages.push(usage);
    const { generatedTokens, decodeTokensPerSecond, ttftMs } = usage;
    const cut = isCut ? '; cut there, /set max-tokens allows more' : '';
    this.#context.write('\n');
    this.#hint(
      `${generatedTokens} tokens at ${decodeTokensPerSecond.toFixed(1)}/s, the first after ${formatMs(ttftMs)}${cut}`,
    );
  }

  /** A message that cannot be answered does not end the chat; lost ranks do. */
  #refuse(error: unknown): void {
    if (!(error instanceof ConfigError)) throw error;
    this.#editor.say(error.message);
  }

  #table(): string {
    return rankTable(reportOf(this.#serving.supervisor.cluster, sumUsage(this.#usages)));
  }

  #hint(line: string): void {
    this.#editor.say(dim(line, this.#terminal));
  }
}
