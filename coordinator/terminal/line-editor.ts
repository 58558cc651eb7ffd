/**
 * Lines that a person types, with editing and history, one at a time; and Ctrl-C, also while nobody waits for a line.
 * What is typed while an answer is written is not echoed into it, but kept for the next line. Read next: chat.ts.
 */
import { once } from 'node:events';
import { createInterface, type Interface } from 'node:readline';
import { Writable } from 'node:stream';
import type { Terminal } from './terminal.ts';

/** end: Ctrl-D, or the terminal is gone. */
export type Typed = { readonly kind: 'line'; readonly text: string } | { readonly kind: 'interrupt' | 'end' };

export class LineEditor implements Disposable {
  /** Ctrl-C while no line is waited for; undefined: it counts for the next line. */
  onInterrupt: (() => void) | undefined;
  readonly #editor: Interface;
  readonly #echo: Echo;
  readonly #typed: Typed[] = [];
  #take: ((typed: Typed) => void) | undefined;

  /** @param history latest first */
  constructor({ input, output }: Terminal, history: readonly string[]) {
    this.#echo = new Echo(output);
    this.#editor = createInterface({
      input,
      output: this.#echo,
      terminal: true,
      history: [...history],
      historySize: maxHistory,
      removeHistoryDuplicates: true,
    });
    this.#echo.isMuted = true;
    this.#editor.on('line', (text) => this.#give({ kind: 'line', text }));
    this.#editor.on('close', () => this.#give({ kind: 'end' }));
    this.#editor.on('SIGINT', () => this.#interrupted());
  }

  /** The next line. interrupt: Ctrl-C on an empty line; on another it empties the line. */
  async read(prompt: string): Promise<Typed> {
    this.#echo.isMuted = false;
    const early = this.#typed.shift();
    if (early !== undefined) {
      this.#echo.write(`${prompt}${early.kind === 'line' ? early.text : ''}\n`);
      this.#echo.isMuted = true;
      return early;
    }
    this.#editor.setPrompt(prompt);
    this.#editor.prompt(true);
    const typed = await new Promise<Typed>((resolve) => {
      this.#take = resolve;
    });
    if (typed.kind !== 'line') this.#echo.write('\n');
    this.#echo.isMuted = true;
    return typed;
  }

  /** Writes a line above the one that is being typed. */
  say(line: string): void {
    const isTyping = this.#take !== undefined;
    this.#echo.target.write(isTyping ? `\r\u001b[0J${line}\n` : `${line}\n`);
    if (isTyping) this.#editor.prompt(true);
  }

  /** Ends a wait for a line, as Ctrl-D does. */
  [Symbol.dispose](): void {
    this.#editor.close();
  }

  #interrupted(): void {
    if (this.#take === undefined && this.onInterrupt !== undefined) return this.onInterrupt();
    if (this.#editor.line === '') return this.#give({ kind: 'interrupt' });
    // To the line's end, then all of it away.
    this.#editor.write(null, { ctrl: true, name: 'e' });
    this.#editor.write(null, { ctrl: true, name: 'u' });
  }

  #give(typed: Typed): void {
    const take = this.#take;
    this.#take = undefined;
    if (take === undefined) this.#typed.push(typed);
    else take(typed);
  }
}

export const maxHistory = 500;

/** Passes on what the editor draws, unless muted. */
class Echo extends Writable {
  isMuted = false;
  readonly target: NodeJS.WriteStream;

  constructor(target: NodeJS.WriteStream) {
    super();
    this.target = target;
    target.on('resize', () => this.emit('resize'));
  }

  get columns(): number {
    return this.target.columns;
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    if (this.isMuted || this.target.write(chunk)) return done();
    void once(this.target, 'drain').then(done, done);
  }
}
