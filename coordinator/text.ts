/**
 * The text side of a model in one place: a prompt to tokens, through the chat template or as it is, and tokens to text.
 * Read next: ../model/tokenizer.ts, ../model/chat-template.ts.
 */
import { readFile } from 'node:fs/promises';
import { ConfigError, messageOf } from '../config/errors.ts';
import { makeChatTemplate, type ChatMessage } from '../model/chat-template.ts';
import { loadTokenizerFiles } from '../model/tokenizer-files.ts';
import { makeTokenizer, type Tokenizer, type TokenStream } from '../model/tokenizer.ts';
import { decodeUtf8 } from './command-context.ts';

export interface ModelText {
  /** The text itself, nothing added. */
  readonly encode: (text: string) => number[];
  /** The text, behind the model's start token where the model expects one. */
  readonly encodeRaw: (text: string) => number[];
  /** The text as the user's message of a new chat; as encodeRaw where the model has no chat template. */
  readonly encodeChat: (text: string, system: string | undefined) => number[];
  /**
   * Messages as the text that the model was trained on, ending with the opening of its answer. The template writes the
   * start token itself.
   * @throws ConfigError when the model has no chat template, or the template refuses the messages
   */
  readonly renderChat: (messages: readonly ChatMessage[]) => string;
  readonly hasChatTemplate: boolean;
  readonly tokenizer: Tokenizer;
  /** Control tokens give no text. */
  readonly newStream: () => TokenStream;
  /** Tokens that end an answer. */
  readonly endIds: readonly number[];
  /** @throws ConfigError when the model has no start token */
  readonly requireBos: () => number;
}

/**
 * @param path a model folder or file
 * @param chatTemplateFile --chat-template: instead of the model's own
 * @throws ConfigError when the model has no tokenizer, or the template is not valid
 */
export async function openText(path: string, chatTemplateFile?: string): Promise<ModelText> {
  const own = await loadTokenizerFiles(path);
  const files =
    chatTemplateFile === undefined
      ? own
      : { ...own, source: chatTemplateFile, chatTemplate: await readGivenText(chatTemplateFile, '--chat-template') };
  const tokenizer = makeTokenizer(files);
  const template = makeChatTemplate(files);
  const encodeRaw = (text: string): number[] => {
    const ids = tokenizer.encode(text);
    return tokenizer.addsBos && tokenizer.bosId !== undefined ? [tokenizer.bosId, ...ids] : ids;
  };
  return {
    tokenizer,
    hasChatTemplate: template !== undefined,
    renderChat(messages) {
      if (template !== undefined) return template.render(messages, { addGenerationPrompt: true });
      throw new ConfigError('this model has no chat template; use a plain prompt, or a model that was made for chats');
    },
    encode: (text) => tokenizer.encode(text),
    encodeRaw,
    encodeChat(text, system) {
      if (template === undefined) return encodeRaw(text);
      const messages = system === undefined ? [] : [{ role: 'system', content: system }];
      messages.push({ role: 'user', content: text });
      return tokenizer.encode(template.render(messages, { addGenerationPrompt: true }));
    },
    newStream: () => tokenizer.newStream(),
    endIds: tokenizer.eosIds,
    requireBos() {
      if (tokenizer.bosId !== undefined) return tokenizer.bosId;
      throw new ConfigError('--bos each: this model has no start token; use --bos none');
    },
  };
}

/** @param flag names the file in messages  @throws ConfigError when the file cannot be read or is not UTF-8 */
export async function readGivenText(path: string, flag: string): Promise<string> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    throw new ConfigError(`${flag} ${path}: cannot be read (${messageOf(cause)}); name an existing file`, { cause });
  }
  return decodeUtf8(bytes, `${flag} ${path}`);
}
