/**
 * Turns messages into the text a model was trained on, by the Jinja template that comes with it. A template is hostile
 * input: it runs in an interpreter of its own that sees the given values only (no objects of this program), for a
 * limited time. Every failure is a ConfigError. Read next: tokenizer-files.ts, which finds the template.
 */
import { runInNewContext } from 'node:vm';
import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja';
import { ConfigError, invariant, messageOf } from '../config/errors.ts';
import { loadTokenizerFiles } from './tokenizer-files.ts';
import type { TokenizerFiles } from './tokenizer-json.ts';

export interface ChatMessage {
  /** 'system', 'user', 'assistant' or what else the template knows. */
  readonly role: string;
  readonly content: string;
}

export interface ChatTemplate {
  /**
   * Content is not escaped: the text of a special token in it becomes that token when encoded.
   * @param options.addGenerationPrompt end with the opening of the assistant's answer
   * @throws ConfigError when the template refuses the messages, fails, or takes longer than 2 s
   */
  render(messages: readonly ChatMessage[], options: { readonly addGenerationPrompt: boolean }): string;
}

const timeLimitMs = 2000;
const maxRange = 100_000;
const maxRenderedLength = 1 << 25;

/**
 * @param path as for loadTokenizer
 * @returns undefined when the model has no template, or an empty one
 * @throws ConfigError when the template is not valid Jinja
 */
export async function loadChatTemplate(path: string): Promise<ChatTemplate | undefined> {
  return makeChatTemplate(await loadTokenizerFiles(path));
}

/** @throws ConfigError when the template is not valid Jinja */
export function makeChatTemplate({ source, chatTemplate, config }: TokenizerFiles): ChatTemplate | undefined {
  if (chatTemplate === undefined || chatTemplate.trim() === '') return undefined;
  const where = `chat template of ${source}`;
  // The options that transformers sets.
  const program = guarded(where, () => parse(tokenize(chatTemplate, { lstrip_blocks: true, trim_blocks: true })));
  const tokens = Object.entries(config).flatMap(([key, value]) => {
    const text = key.endsWith('_token') ? tokenText(value) : undefined;
    return text === undefined ? [] : [[key, text] as const];
  });
  return {
    render: (messages, { addGenerationPrompt }) =>
      guarded(where, () => {
        const environment = newEnvironment();
        for (const [key, value] of tokens) environment.set(key, value);
        environment.set('messages', messages);
        environment.set('add_generation_prompt', addGenerationPrompt);
        environment.set('tools', null);
        environment.set('documents', null);
        const text = new Interpreter(environment).run(program).toString();
        if (text.length <= maxRenderedLength) return text;
        throw new Error(`gives ${text.length} characters; at most ${maxRenderedLength} are allowed`);
      }),
  };
}

/** A token of tokenizer_config.json is written as its text, or as an object that holds it. */
function tokenText(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  const isObject = typeof value === 'object' && value !== null && 'content' in value;
  return isObject && typeof value.content === 'string' ? value.content : undefined;
}

/** Runs with a time limit; what it throws becomes a ConfigError. */
function guarded<T>(where: string, work: () => T): T {
  const results: T[] = [];
  try {
    // The time limit of a script also ends what it calls; nothing else is used of the new context.
    runInNewContext('work()', { work: () => void results.push(work()) }, { timeout: timeLimitMs });
  } catch (cause) {
    const isLate =
      typeof cause === 'object' && cause !== null && 'code' in cause && cause.code === 'ERR_SCRIPT_EXECUTION_TIMEOUT';
    throw new ConfigError(`${where}: ${isLate ? `takes longer than ${timeLimitMs} ms` : messageOf(cause)}`, { cause });
  }
  const [result] = results;
  invariant(result !== undefined, 'a script that ended has done its work');
  return result;
}

/** The globals that transformers gives to templates, and no others. */
function newEnvironment(): Environment {
  const environment = new Environment();
  for (const [name, value] of [
    ['true', true],
    ['false', false],
    ['none', null],
  ] as const) {
    environment.set(name, value);
    environment.set(name.charAt(0).toUpperCase() + name.slice(1), value);
  }
  environment.set('range', range);
  environment.set('strftime_now', strftimeNow);
  environment.set('raise_exception', (message: unknown) => {
    throw new Error(String(message));
  });
  return environment;
}

function range(first: number, stop?: number, step = 1): number[] {
  const start = stop === undefined ? 0 : first;
  const count = Math.max(0, Math.ceil(((stop ?? first) - start) / step));
  if (!(count <= maxRange)) throw new Error(`range() of ${count} numbers; at most ${maxRange} are allowed`);
  return Array.from({ length: count }, (_, i) => start + i * step);
}

/** Python's strftime, in English, for the codes that templates use. */
function strftimeNow(format: string): string {
  const now = new Date();
  const named = (options: Intl.DateTimeFormatOptions): string => new Intl.DateTimeFormat('en-US', options).format(now);
  const two = (value: number): string => String(value).padStart(2, '0');
  return format.replace(/%[YmdbBaAHMS%]/g, (code) => {
    switch (code) {
      case '%Y':
        return String(now.getFullYear());
      case '%m':
        return two(now.getMonth() + 1);
      case '%d':
        return two(now.getDate());
      case '%b':
        return named({ month: 'short' });
      case '%B':
        return named({ month: 'long' });
      case '%a':
        return named({ weekday: 'short' });
      case '%A':
        return named({ weekday: 'long' });
      case '%H':
        return two(now.getHours());
      case '%M':
        return two(now.getMinutes());
      case '%S':
        return two(now.getSeconds());
      default:
        return '%';
    }
  });
}
