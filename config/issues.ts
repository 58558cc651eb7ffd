/** Turns a zod issue into the line a user reads: expected, got, and what to do. */
import type { z } from 'zod';
import { clusterSchema } from './cluster.ts';
import { nearMiss } from './near-miss.ts';

export interface DescribedIssue {
  readonly path: readonly PropertyKey[];
  readonly text: string;
}

/** One entry, or one for each unknown key of an object. */
export function describeIssue(issue: z.core.$ZodIssue): DescribedIssue[] {
  const { path } = issue;
  switch (issue.code) {
    case 'unrecognized_keys':
      return issue.keys.map((key) => ({ path: [...path, key], text: unknownKey(key, keysAt(path)) }));
    case 'invalid_value': {
      const meant = typeof issue.input === 'string' ? nearMiss(issue.input, issue.values.map(String)) : undefined;
      const hint = meant === undefined ? '' : `; did you mean ${meant}?`;
      return [{ path, text: `expected ${issue.values.map(String).join(', ')}, got ${show(issue.input)}${hint}` }];
    }
    case 'invalid_type':
      if (issue.input === undefined) return [{ path, text: `missing; expected ${typeName(issue.expected)}` }];
      return [{ path, text: `expected ${typeName(issue.expected)}, got ${show(issue.input)}` }];
    case 'too_small':
      return [
        {
          path,
          text: `expected ${bound(issue.origin, 'at least', issue.minimum, issue.inclusive)}, got ${show(issue.input)}`,
        },
      ];
    case 'too_big':
      return [
        {
          path,
          text: `expected ${bound(issue.origin, 'at most', issue.maximum, issue.inclusive)}, got ${show(issue.input)}`,
        },
      ];
    case 'custom':
    case 'invalid_element':
    case 'invalid_format':
    case 'invalid_key':
    case 'invalid_union':
    case 'not_multiple_of':
      return [{ path, text: issue.message }];
  }
}

function unknownKey(key: string, known: readonly string[]): string {
  const meant = nearMiss(key, known);
  return meant === undefined ? `unknown key; known here: ${known.join(', ')}` : `unknown key; did you mean ${meant}?`;
}

/** Keys that the schema knows at a path: of the file, of one of its sections, or of a rank. */
function keysAt(path: readonly PropertyKey[]): string[] {
  const { shape } = clusterSchema;
  const [section] = path;
  if (section === undefined) return Object.keys(shape);
  if (section === 'ranks') return Object.keys(shape.ranks.element.shape);
  const found = Object.entries(shape).find(([name]) => name === section)?.[1];
  return found !== undefined && 'unwrap' in found ? keysOf(found.unwrap()) : [];
}

function keysOf(schema: object): string[] {
  return 'shape' in schema && typeof schema.shape === 'object' && schema.shape !== null
    ? Object.keys(schema.shape)
    : [];
}

function bound(origin: string, words: string, limit: number | bigint, inclusive: boolean | undefined): string {
  const unit = origin === 'array' ? ' entries' : origin === 'string' ? ' characters' : '';
  if (inclusive === false) return `${words === 'at least' ? 'more than' : 'less than'} ${limit}${unit}`;
  return `${words} ${limit}${unit}`;
}

function typeName(expected: string): string {
  const names: Readonly<Record<string, string>> = {
    int: 'a whole number',
    number: 'a number',
    string: 'a text',
    boolean: 'true or false',
    object: 'keys with values',
    array: 'a list',
  };
  return names[expected] ?? expected;
}

function show(value: unknown): string {
  if (Array.isArray(value)) return `${value.length} entries`;
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
