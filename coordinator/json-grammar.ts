/**
 * Grammars of JSON: of any object, and of what a JSON schema describes (objects whose properties come in the order of
 * the schema, arrays, strings, numbers, enum, const, anyOf, $ref into $defs). White space between tokens is one space or
 * one line end with up to 15 spaces, and numbers have few digits, so that a model cannot fill its answer with either. Refuses schema keywords that would
 * be ignored. Read next: grammar.ts, which runs these.
 */
import type { Alternatives, Grammar, GrammarSymbol } from './grammar.ts';

/** A schema that cannot be turned into a grammar; `path` says where: `.properties.age`. */
export class SchemaError extends Error {
  override readonly name = 'SchemaError';
  readonly path: string;

  constructor(path: string, message: string) {
    super(message);
    this.path = path;
  }
}

type Schema = Readonly<Record<string, unknown>>;

const encoder = new TextEncoder();
const maxIndent = 16;
/** More would not be exact in a float64, and a model may not know when to stop. */
const maxDigits = 15;
const maxDepth = 64;

export function jsonObjectGrammar(): Grammar {
  return { start: 'object', rules: baseRules() };
}

/** @throws SchemaError */
export function schemaGrammar(schema: Schema): Grammar {
  const builder = new SchemaRules(schema);
  const start = builder.ruleFor(schema, '', 0);
  return { start, rules: builder.rules };
}

function baseRules(): Map<string, Alternatives> {
  const digits = [rule('digit'), rule(`digits${maxDigits - 1}`)];
  return new Map<string, Alternatives>([
    ...whiteSpaceRules(),
    ['value', ['object', 'array', 'string', 'number', 'boolean', 'null'].map((name) => [rule(name)])],
    ['object', [[...text('{'), rule('ws'), rule('members')]]],
    ['members', [text('}'), [rule('member'), rule('moreMembers')]]],
    ['member', [[rule('string'), rule('ws'), ...text(':'), rule('ws'), rule('value'), rule('ws')]]],
    ['moreMembers', [text('}'), [...text(','), rule('ws'), rule('member'), rule('moreMembers')]]],
    ['array', [[...text('['), rule('ws'), rule('items')]]],
    ['items', [text(']'), [rule('value'), rule('ws'), rule('moreItems')]]],
    ['moreItems', [text(']'), [...text(','), rule('ws'), rule('value'), rule('ws'), rule('moreItems')]]],
    ['string', [[...text('"'), rule('characters')]]],
    ['characters', [text('"'), [rule('character'), rule('characters')]]],
    ['character', characterAlternatives()],
    ['hex', [[anyOf('0-9', 'a-f', 'A-F')]]],
    ['number', [[rule('integer'), rule('fraction'), rule('exponent')]]],
    ['integer', [[rule('natural')], [...text('-'), rule('natural')]]],
    ['natural', [text('0'), [anyOf('1-9'), rule(`digits${maxDigits - 1}`)]]],
    ...digitRules(),
    ['digit', [[anyOf('0-9')]]],
    ['fraction', [[], [...text('.'), ...digits]]],
    ['exponent', [[], [anyOf('e-e', 'E-E'), rule('sign'), ...digits]]],
    ['sign', [[], [anyOf('+-+', '---')]]],
    ['boolean', [text('true'), text('false')]],
    ['null', [text('null')]],
  ]);
}

/** Up to so many more digits. */
function digitRules(): [string, Alternatives][] {
  return Array.from({ length: maxDigits }, (_, left): [string, Alternatives] => [
    `digits${left}`,
    left === 0 ? [[]] : [[], [rule('digit'), rule(`digits${left - 1}`)]],
  ]);
}

function whiteSpaceRules(): [string, Alternatives][] {
  const indents = Array.from({ length: maxIndent }, (_, left): [string, Alternatives] => [
    `indent${left}`,
    left === 0 ? [[]] : [[], [...text(' '), rule(`indent${left - 1}`)]],
  ]);
  return [...indents, ['ws', [[], text(' '), [...text('\n'), rule(`indent${maxIndent - 1}`)]]]];
}

/** One character inside a string: escaped, ASCII, or UTF-8 without surrogates and overlong forms. */
function characterAlternatives(): Alternatives {
  const tail = bytes([0x80, 0xbf]);
  return [
    [bytes([0x20, 0x21], [0x23, 0x5b], [0x5d, 0x7f])],
    [...text('\\'), anyOf('"-"', '\\-\\', '/-/', 'b-b', 'f-f', 'n-n', 'r-r', 't-t')],
    [...text('\\u'), rule('hex'), rule('hex'), rule('hex'), rule('hex')],
    [bytes([0xc2, 0xdf]), tail],
    [bytes([0xe0, 0xe0]), bytes([0xa0, 0xbf]), tail],
    [bytes([0xe1, 0xec], [0xee, 0xef]), tail, tail],
    [bytes([0xed, 0xed]), bytes([0x80, 0x9f]), tail],
    [bytes([0xf0, 0xf0]), bytes([0x90, 0xbf]), tail, tail],
    [bytes([0xf1, 0xf3]), tail, tail, tail],
    [bytes([0xf4, 0xf4]), bytes([0x80, 0x8f]), tail, tail],
  ];
}

/** Keywords that say nothing about the form, or are built in. */
const heeded = new Set(
  'type properties required additionalProperties items enum const anyOf oneOf allOf $ref $defs definitions'.split(' '),
);
const notes = new Set('title description default examples $schema $id $comment strict deprecated'.split(' '));

/** Rules for one schema and everything in it. */
class SchemaRules {
  readonly rules = baseRules();
  readonly #root: Schema;
  readonly #refs = new Map<string, string>();
  #count = 0;

  constructor(root: Schema) {
    this.#root = root;
  }

  /** @returns the name of the rule that matches what `schema` describes */
  ruleFor(schema: Schema, path: string, depth: number): string {
    if (depth > maxDepth) throw new SchemaError(path, `nested deeper than ${maxDepth}; use $ref for recursion`);
    for (const key of Object.keys(schema))
      if (!heeded.has(key) && !notes.has(key)) throw new SchemaError(`${path}.${key}`, 'keyword is not supported');
    const { $ref: ref, const: constant } = schema;
    if (typeof ref === 'string') return this.#reference(ref, path, depth);
    if (constant !== undefined) return this.#add([text(JSON.stringify(constant))]);
    if (Array.isArray(schema['enum']))
      return this.#add(schema['enum'].map((value: unknown) => text(JSON.stringify(value))));
    for (const key of ['anyOf', 'oneOf', 'allOf']) {
      const branches = schema[key];
      if (!Array.isArray(branches)) continue;
      if (key === 'allOf' && branches.length > 1)
        throw new SchemaError(`${path}.allOf`, 'more than one schema is not supported');
      return this.#add(
        branches.map((branch: unknown, i) => [
          rule(this.ruleFor(asSchema(branch, `${path}.${key}[${i}]`), `${path}.${key}[${i}]`, depth + 1)),
        ]),
      );
    }
    const types = typesOf(schema);
    return this.#add(types.map((type) => [rule(this.#typed(type, schema, path, depth))]));
  }

  #typed(type: string, schema: Schema, path: string, depth: number): string {
    switch (type) {
      case 'string':
      case 'number':
      case 'integer':
      case 'boolean':
      case 'null':
      case 'value':
        return type;
      case 'array':
        return schema['items'] === undefined ? 'array' : this.#array(schema['items'], path, depth);
      case 'object':
        return schema['properties'] === undefined ? 'object' : this.#object(schema, path, depth);
      default:
        throw new SchemaError(`${path}.type`, `expected a JSON type, got ${JSON.stringify(type)}`);
    }
  }

  #array(items: unknown, path: string, depth: number): string {
    const item = rule(this.ruleFor(asSchema(items, `${path}.items`), `${path}.items`, depth + 1));
    const more = this.#name();
    this.rules.set(more, [text(']'), [...text(','), rule('ws'), item, rule('ws'), rule(more)]]);
    const first = this.#add([text(']'), [item, rule('ws'), rule(more)]]);
    return this.#add([[...text('['), rule('ws'), rule(first)]]);
  }

  /** Properties in the schema's order; those that are not required may be left out. */
  #object(schema: Schema, path: string, depth: number): string {
    const properties = Object.entries(asSchema(schema['properties'], `${path}.properties`));
    const required = new Set(Array.isArray(schema['required']) ? schema['required'] : []);
    const place = (i: number, isFirst: boolean): GrammarSymbol => rule(`${names}:${i}:${isFirst ? 'first' : 'next'}`);
    const names = this.#name();
    for (const isFirst of [true, false])
      this.rules.set(`${names}:${properties.length}:${isFirst ? 'first' : 'next'}`, [text('}')]);
    for (const [i, [key, value]] of properties.entries()) {
      const inner = rule(
        this.ruleFor(asSchema(value, `${path}.properties.${key}`), `${path}.properties.${key}`, depth + 1),
      );
      const member = [
        ...text(JSON.stringify(key)),
        rule('ws'),
        ...text(':'),
        rule('ws'),
        inner,
        rule('ws'),
        place(i + 1, false),
      ];
      for (const isFirst of [true, false]) {
        const taken = isFirst ? member : [...text(','), rule('ws'), ...member];
        const alternatives = required.has(key) ? [taken] : [taken, [place(i + 1, isFirst)]];
        this.rules.set(`${names}:${i}:${isFirst ? 'first' : 'next'}`, alternatives);
      }
    }
    return this.#add([[...text('{'), rule('ws'), place(0, true)]]);
  }

  /** A rule of its own for each definition, so that recursive schemas end. */
  #reference(ref: string, path: string, depth: number): string {
    const known = this.#refs.get(ref);
    if (known !== undefined) return known;
    let target: unknown = this.#root;
    if (ref !== '#' && !ref.startsWith('#/')) throw new SchemaError(`${path}.$ref`, `${ref}: only #/... is supported`);
    for (const key of ref.split('/').slice(1))
      target = typeof target === 'object' && target !== null ? Reflect.get(target, key) : undefined;
    const name = this.#name();
    this.#refs.set(ref, name);
    this.rules.set(name, [[rule(this.ruleFor(asSchema(target, `${path}.$ref ${ref}`), path, depth + 1))]]);
    return name;
  }

  #add(alternatives: Alternatives): string {
    const name = this.#name();
    this.rules.set(name, alternatives);
    return name;
  }

  #name(): string {
    return `schema${this.#count++}`;
  }
}

function typesOf(schema: Schema): string[] {
  const { type } = schema;
  if (typeof type === 'string') return [type];
  if (Array.isArray(type)) return type.map(String);
  if (schema['properties'] !== undefined) return ['object'];
  return [schema['items'] === undefined ? 'value' : 'array'];
}

function asSchema(value: unknown, path: string): Schema {
  if (value === true) return {};
  if (typeof value === 'object' && value !== null && !Array.isArray(value))
    return Object.fromEntries(Object.entries(value));
  throw new SchemaError(path, `expected a schema, got ${JSON.stringify(value)}`);
}

function rule(name: string): GrammarSymbol {
  return { kind: 'rule', name };
}

/** The bytes of a text, one after the other. */
function text(value: string): GrammarSymbol[] {
  return Array.from(encoder.encode(value), (byte) => bytes([byte, byte]));
}

/** One ASCII character of ranges such as `a-f`. */
function anyOf(...ranges: string[]): GrammarSymbol {
  return bytes(...ranges.map((range): [number, number] => [range.charCodeAt(0), range.charCodeAt(2)]));
}

function bytes(...ranges: readonly (readonly [number, number])[]): GrammarSymbol {
  const allowed = new Uint8Array(256);
  for (const [first, last] of ranges) allowed.fill(1, first, last + 1);
  return { kind: 'byte', allowed };
}
