/** Grammars of JSON and of schemas: what they accept is JSON that the schema describes, whatever chooses the bytes. */
import { describe, expect, test } from 'vitest';
import fc from 'fast-check';
import { GrammarConstraint, type Grammar } from '../../../coordinator/grammar.ts';
import { jsonObjectGrammar, schemaGrammar, SchemaError } from '../../../coordinator/json-grammar.ts';
import { seededRandom } from '../../../coordinator/sampler.ts';
import type { Tokenizer } from '../../../model/tokenizer.ts';

const end = 256;
/** Every byte is a token, and one token ends the text. */
const byteTokenizer: Tokenizer = {
  vocabSize: 257,
  bosId: undefined,
  eosIds: [end],
  addsBos: false,
  encode: (text) => [...new TextEncoder().encode(text)],
  decode: (ids) => new TextDecoder().decode(Uint8Array.from(ids)),
  newStream: () => ({ push: String, end: () => '' }),
  tokenText: String,
  tokenBytes: (id) => (id === end ? new Uint8Array(0) : Uint8Array.of(id)),
  isControl: (id) => id === end,
};

/** 'whole', 'prefix' of something that the grammar accepts, or the first character that it refuses. */
function read(grammar: Grammar, text: string): string {
  const constraint = new GrammarConstraint(grammar, byteTokenizer);
  let at = 0;
  for (const byte of new TextEncoder().encode(text)) {
    if (!constraint.allows(byte)) return `refused at ${at}`;
    constraint.push(byte);
    at++;
  }
  return constraint.allows(end) ? 'whole' : 'prefix';
}

/** A text of random allowed bytes; closing ones are preferred, so that it ends. */
function write(grammar: Grammar, seed: number): string {
  const random = seededRandom(seed);
  const constraint = new GrammarConstraint(grammar, byteTokenizer);
  const bytes: number[] = [];
  while (!constraint.done && bytes.length < 2000) {
    const allowed = Array.from({ length: 257 }, (_, token) => token).filter((token) => constraint.allows(token));
    const closing = allowed.filter((token) => token === end || '"]}'.includes(String.fromCharCode(token)));
    const from = closing.length > 0 && random() < 0.4 ? closing : allowed;
    const token = from[Math.floor(random() * from.length)]!;
    if (token === end) break;
    constraint.push(token);
    bytes.push(token);
  }
  return new TextDecoder('utf-8', { fatal: true }).decode(Uint8Array.from(bytes));
}

describe('any JSON object', () => {
  test('is accepted as JSON.stringify writes it, to its last brace and not beyond', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string({ unit: 'grapheme' }), fc.jsonValue({ noUnicodeString: false })), (value) => {
        const text = JSON.stringify(value);
        // Numbers are kept short on purpose.
        if (/\d{15}/.test(text)) return;
        expect(read(jsonObjectGrammar(), text)).toBe('whole');
        expect(read(jsonObjectGrammar(), text.slice(0, -1))).toBe('prefix');
      }),
      { seed: 7, numRuns: 200 },
    );
    expect(read(jsonObjectGrammar(), '{}x')).toBe('refused at 2');
  });

  test.each([
    ['[1]', 'refused at 0'],
    ['{a}', 'refused at 1'],
    ['{"a":01}', 'refused at 6'],
    ['{"a":"\n"}', 'refused at 6'],
    ['{"a":tru }', 'refused at 8'],
    ['{"a":1,}', 'refused at 7'],
    ['{\n  "a": [1, -2.5e+3, "\\u00e9", {}],\n  "b": null\n}', 'whole'],
    ['{"a":"é😀"}', 'whole'],
    [`{"a":${' '.repeat(2)}1}`, 'refused at 6'],
  ])('%s: %s', (text, expected) => expect(read(jsonObjectGrammar(), text)).toBe(expected));

  test('whatever is written by the grammar parses', () => {
    for (let seed = 0; seed < 40; seed++) {
      const text = write(jsonObjectGrammar(), seed);
      expect(JSON.parse(text)).toBeTypeOf('object');
    }
  });
});

describe('a schema', () => {
  const schema = {
    type: 'object',
    properties: {
      name: { type: 'string' },
      kind: { enum: ['cat', 'dog', 3] },
      age: { type: ['integer', 'null'] },
      tags: { type: 'array', items: { $ref: '#/$defs/tag' } },
      next: { anyOf: [{ $ref: '#' }, { const: false }] },
    },
    required: ['name', 'kind', 'next'],
    additionalProperties: false,
    $defs: { tag: { type: 'object', properties: { t: { type: 'boolean' } }, required: ['t'] } },
  };

  test('accepts what it describes, optional properties left out or not', () => {
    const grammar = schemaGrammar(schema);
    expect(read(grammar, '{"name":"a","kind":"dog","next":false}')).toBe('whole');
    expect(read(grammar, '{"name":"a","kind":3,"age":null,"tags":[],"next":false}')).toBe('whole');
    expect(
      read(
        grammar,
        '{"name":"a","kind":"cat","age":12,"tags":[{"t":true}, {"t":false}],"next":{"name":"b","kind":3,"next":false}}',
      ),
    ).toBe('whole');
    expect(read(grammar, '{"kind"')).toBe('refused at 2');
    expect(read(grammar, '{"name":"a","kind":"cow"')).toBe('refused at 21');
    expect(read(grammar, '{"name":"a","kind":3}')).toBe('refused at 20');
    expect(read(grammar, '{"name":"a","kind":3,"age":1.5')).toBe('refused at 28');
  });

  test('only optional properties: any of them, and none', () => {
    const grammar = schemaGrammar({ properties: { a: { type: 'null' }, b: { type: 'null' } } });
    for (const text of ['{}', '{"a":null}', '{"b":null}', '{"a":null, "b":null}'])
      expect(read(grammar, text)).toBe('whole');
    expect(read(grammar, '{"b":null,"a"')).toBe('refused at 9');
    expect(read(grammar, '{,')).toBe('refused at 1');
  });

  test('what is not supported is refused by name and place', () => {
    const bad = () => schemaGrammar({ properties: { a: { type: 'string', pattern: '^x' } } });
    expect(bad).toThrow(SchemaError);
    expect(bad).toThrow('keyword is not supported');
    expect(() => schemaGrammar({ type: 'text' })).toThrow('expected a JSON type, got "text"');
    expect(() => schemaGrammar({ items: 7 })).toThrow('expected a schema, got 7');
    expect(() => schemaGrammar({ $ref: 'http://x/y' })).toThrow('only #/... is supported');
  });
});
