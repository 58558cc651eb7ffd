/**
 * The messages of a chat, cut to what the context holds: the oldest turns are left out first, the system message and the
 * last message never. Pure but for what the tokenizer does. Read next: chat.ts.
 */
import type { ChatMessage } from '../../model/chat-template.ts';
import type { ModelText } from '../text.ts';

export interface ChatPrompt {
  readonly promptIds: readonly number[];
  /** Messages that no longer fit and are not in it. */
  readonly leftOut: number;
}

type ConversationText = Pick<ModelText, 'hasChatTemplate' | 'encodeRaw' | 'renderChat' | 'tokenizer'>;

export class Conversation {
  system: string | undefined;
  readonly #text: ConversationText;
  readonly #isRaw: boolean;
  #messages: ChatMessage[] = [];

  /** @param isRaw each message is continued as it is, by itself; so it is where the model has no chat template */
  constructor(text: ConversationText, { system, isRaw }: { system: string | undefined; isRaw: boolean }) {
    this.#text = text;
    this.system = system;
    this.#isRaw = isRaw || !text.hasChatTemplate;
  }

  get isRaw(): boolean {
    return this.#isRaw;
  }

  ask(content: string): void {
    this.#messages.push({ role: 'user', content });
  }

  answered(content: string): void {
    this.#messages.push({ role: 'assistant', content });
  }

  /** Takes back the latest question and what followed. @returns the question; undefined: there is none */
  takeBack(): string | undefined {
    const at = this.#messages.findLastIndex(({ role }) => role === 'user');
    const [question] = this.#messages.splice(at === -1 ? this.#messages.length : at);
    return question?.content;
  }

  clear(): void {
    this.#messages = [];
  }

  /**
   * @param limit tokens that the prompt may have
   * @returns a prompt of at most `limit` tokens, or of the last message alone, which may be longer
   */
  prompt(limit: number): ChatPrompt {
    if (this.#isRaw) return { promptIds: this.#text.encodeRaw(this.#messages.at(-1)?.content ?? ''), leftOut: 0 };
    const system = this.system === undefined ? [] : [{ role: 'system', content: this.system }];
    for (let first = 0; ; first++) {
      // Templates expect a conversation to begin with the user.
      if (this.#messages[first]?.role === 'assistant') continue;
      const kept = this.#messages.slice(first);
      const promptIds = this.#text.tokenizer.encode(this.#text.renderChat([...system, ...kept]));
      if (promptIds.length <= limit || kept.length <= 1) return { promptIds, leftOut: first };
    }
  }
}
