/**
 * Text that must follow a context-free grammar, token by token, on UTF-8 bytes. A state is a set of stacks: everything
 * that may still come, for each way in which the text so far can be read. Cost of a byte: the number of stacks, which
 * the grammars of json-grammar.ts keep small. Knows nothing of JSON. Read next: json-grammar.ts, sequence.ts (the user).
 */
import { InvariantError } from '../config/errors.ts';
import type { Tokenizer } from '../model/tokenizer.ts';
import type { TokenConstraint } from './generation.ts';

export type GrammarSymbol =
  /** One byte of a set: 1 where it is allowed. [256] */
  { readonly kind: 'byte'; readonly allowed: Uint8Array } | { readonly kind: 'rule'; readonly name: string };

/** One of several sequences of symbols; an empty sequence matches nothing and goes on. */
export type Alternatives = readonly (readonly GrammarSymbol[])[];

export interface Grammar {
  readonly start: string;
  /** No rule may begin with itself. */
  readonly rules: ReadonlyMap<string, Alternatives>;
}

/** Symbols still to come in one sequence, and what comes after it. undefined: the end of the text. */
interface Stack {
  readonly symbols: readonly GrammarSymbol[];
  readonly at: number;
  readonly rest: Stack | undefined;
}

/** Stacks whose next symbol is a byte; `undefined` among them: the text may end here. */
type State = readonly (Stack | undefined)[];

export class GrammarConstraint implements TokenConstraint {
  readonly #grammar: Grammar;
  readonly #tokenizer: Tokenizer;
  #state: State;

  constructor(grammar: Grammar, tokenizer: Tokenizer) {
    this.#grammar = grammar;
    this.#tokenizer = tokenizer;
    this.#state = this.#expand([{ symbols: [{ kind: 'rule', name: grammar.start }], at: 0, rest: undefined }]);
  }

  allows(tokenId: number): boolean {
    if (this.#tokenizer.eosIds.includes(tokenId)) return this.#state.includes(undefined);
    return this.#after(tokenId) !== undefined;
  }

  push(tokenId: number): void {
    const state = this.#after(tokenId);
    if (state === undefined) throw new InvariantError(`token ${tokenId} was chosen although the grammar refuses it`);
    this.#state = state;
  }

  get done(): boolean {
    return this.#state.every((stack) => stack === undefined);
  }

  /** undefined: the token does not fit. Control tokens and tokens without text never do. */
  #after(tokenId: number): State | undefined {
    if (this.#tokenizer.isControl(tokenId)) return undefined;
    const bytes = this.#tokenizer.tokenBytes(tokenId);
    if (bytes.length === 0) return undefined;
    let state = this.#state;
    for (const byte of bytes) {
      state = this.#step(state, byte);
      if (state.length === 0) return undefined;
    }
    return state;
  }

  #step(state: State, byte: number): State {
    const next: (Stack | undefined)[] = [];
    for (const stack of state) {
      const symbol = stack?.symbols[stack.at];
      if (stack === undefined || symbol?.kind !== 'byte' || symbol.allowed[byte] !== 1) continue;
      next.push({ ...stack, at: stack.at + 1 });
    }
    return this.#expand(next);
  }

  /** Replaces rules at the top of stacks by their alternatives, and finished sequences by what follows them. */
  #expand(stacks: State): State {
    const out: (Stack | undefined)[] = [];
    const open = [...stacks];
    for (let stack = open.pop(); stack !== undefined || open.length > 0; stack = open.pop()) {
      const symbol = stack?.symbols[stack.at];
      if (stack === undefined) {
        if (!out.includes(undefined)) out.push(undefined);
      } else if (symbol === undefined) {
        if (stack.rest !== undefined) open.push(stack.rest);
        else if (!out.includes(undefined)) out.push(undefined);
      } else if (symbol.kind === 'byte') out.push(stack);
      else {
        const after = { ...stack, at: stack.at + 1 };
        // What has nothing after it leaves the stack, so that lists do not make it deeper.
        const rest = after.at === stack.symbols.length ? stack.rest : after;
        for (const symbols of this.#alternatives(symbol.name)) open.push({ symbols, at: 0, rest });
      }
    }
    return out;
  }

  #alternatives(name: string): Alternatives {
    const alternatives = this.#grammar.rules.get(name);
    if (alternatives === undefined) throw new InvariantError(`grammar: no rule ${name}`);
    return alternatives;
  }
}
