/**
 * Reads a cluster file (YAML or JSON), puts the flags over it and returns one frozen, validated configuration. All
 * mistakes are reported at once, each with file, line and key, or with the flag that made it. Opens no model and
 * starts nothing. Read next: ../coordinator/cluster.ts.
 */
import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { LineCounter, parseDocument, type Document } from 'yaml';
import type { z } from 'zod';
import { clusterSchema, type ClusterConfig } from './cluster.ts';
import { ConfigError, messageOf } from './errors.ts';
import { maxWorldSize } from './shard-plan.ts';
import { lineOfKey } from './yaml-lines.ts';
import { describeIssue } from './issues.ts';

/** What flags may set; a flag that was not given is absent or undefined. */
export interface ClusterFlags {
  readonly model?: string | undefined;
  readonly ranks?: number | undefined;
  readonly scheme?: string | undefined;
  readonly latentGroups?: number | undefined;
  readonly reparam?: string | undefined;
  readonly window?: number | undefined;
  readonly sinks?: number | undefined;
  readonly corrections?: string | undefined;
  readonly prefill?: string | undefined;
  readonly norm?: string | undefined;
  readonly overlap?: number | undefined;
  readonly backend?: string | undefined;
  readonly device?: string | undefined;
  readonly transport?: string | undefined;
  readonly threads?: number | undefined;
  readonly context?: number | undefined;
  readonly cacheType?: string | undefined;
  readonly weights?: string | undefined;
  readonly expertSharding?: string | undefined;
  readonly bind?: string | undefined;
  readonly keys?: string | undefined;
  readonly allowNoKeys?: boolean | undefined;
}

export interface LoadRequest {
  /** Cluster file; absent: everything comes from flags and defaults. */
  readonly file?: string | undefined;
  readonly flags: ClusterFlags;
}

/** Where each flag stands in the configuration. `ranks` and `device` change a list and are put in by hand. */
const flagPaths: Readonly<Record<Exclude<keyof ClusterFlags, 'ranks' | 'device'>, readonly string[]>> = {
  model: ['model'],
  scheme: ['attention', 'scheme'],
  latentGroups: ['attention', 'latentGroups'],
  reparam: ['attention', 'reparameterization'],
  window: ['attention', 'window'],
  sinks: ['attention', 'sinks'],
  corrections: ['attention', 'corrections'],
  prefill: ['attention', 'prefill'],
  norm: ['attention', 'norm'],
  overlap: ['attention', 'overlap'],
  backend: ['compute', 'backend'],
  threads: ['compute', 'threads'],
  weights: ['compute', 'weights'],
  expertSharding: ['compute', 'expertSharding'],
  transport: ['collective', 'transport'],
  context: ['cache', 'contextTokens'],
  cacheType: ['cache', 'type'],
  bind: ['coordinator', 'bind'],
  keys: ['security', 'keys'],
  allowNoKeys: ['security', 'allowNoKeys'],
};

/** Without a file or a flag: sharding is what this program is for. */
const defaultRanks = [{}, {}];

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/**
 * `model` and `security.keys` in a file are relative to the file's folder; as flags, to the working directory.
 * @throws ConfigError with one line for each mistake.
 */
export async function loadClusterConfig(request: LoadRequest): Promise<ClusterConfig> {
  const source = await readSource(request.file);
  const flagOf = new Map<string, string>();
  const raw = withFlags(source, request.flags, flagOf);
  const result = clusterSchema.safeParse(raw, { reportInput: true });
  if (!result.success) throw new ConfigError(describeIssues(result.error, source, flagOf));
  const config = result.data;
  const { file, flags } = request;
  if (file === undefined) return deepFreeze(config);
  const beside = (path: string): string => resolve(dirname(file), path);
  const model = flags.model === undefined && config.model !== 'default' ? beside(config.model) : config.model;
  const keys = flags.keys === undefined ? beside(config.security.keys) : config.security.keys;
  return deepFreeze({ ...config, model, security: { ...config.security, keys } });
}

interface Source {
  /** For messages; undefined: no file. */
  readonly name: string | undefined;
  readonly raw: { [key: string]: Json };
  readonly document: Document | undefined;
  readonly lines: LineCounter;
}

async function readSource(file: string | undefined): Promise<Source> {
  const lines = new LineCounter();
  if (file === undefined) return { name: undefined, raw: {}, document: undefined, lines };
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    throw new ConfigError(
      `cluster file ${file}: cannot be read (${messageOf(error)}); name an existing YAML or JSON file`,
      {
        cause: error,
      },
    );
  }
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  if (document.errors.length > 0)
    throw new ConfigError(
      document.errors.map((e) => `${file}:${lines.linePos(e.pos[0]).line}: not valid YAML: ${e.message}`).join('\n'),
    );
  const raw: Json = document.toJS();
  if (raw === null) return { name: file, raw: {}, document, lines };
  if (typeof raw !== 'object' || Array.isArray(raw))
    throw new ConfigError(
      `${file}:1: expected keys such as \`model:\` and \`ranks:\`, got ${JSON.stringify(raw).slice(0, 60)}`,
    );
  return { name: file, raw, document, lines };
}

/** The raw configuration with flags put over it; `flagOf` receives which flag set which path. */
function withFlags(source: Source, flags: ClusterFlags, flagOf: Map<string, string>): { [key: string]: Json } {
  const merged = structuredClone(source.raw);
  for (const [flag, path] of Object.entries(flagPaths)) {
    const value = Object.entries(flags).find(([name]) => name === flag)?.[1];
    if (value === undefined) continue;
    flagOf.set(path.join('.'), flagName(flag));
    setIn(merged, path, value);
  }
  if (flags.ranks !== undefined) {
    flagOf.set('ranks', '--ranks');
    merged['ranks'] = resized(merged['ranks'], flags.ranks);
  }
  if (source.name === undefined) merged['ranks'] ??= defaultRanks;
  if (flags.device !== undefined && Array.isArray(merged['ranks'])) {
    const { device } = flags;
    merged['ranks'] = merged['ranks'].map((rank) => (isObject(rank) ? { ...rank, device } : rank));
  }
  return merged;
}

/** The first `count` ranks of the file, filled up with local ones. */
function resized(ranks: Json | undefined, count: number): Json {
  if (!Number.isInteger(count) || count < 1 || count > maxWorldSize)
    throw new ConfigError(`--ranks: expected a whole number from 1 to ${maxWorldSize}, got ${count}`);
  const given = Array.isArray(ranks) ? ranks.slice(0, count) : [];
  return [...given, ...Array.from({ length: count - given.length }, () => ({}))];
}

function setIn(target: { [key: string]: Json }, path: readonly string[], value: Json): void {
  const [key, ...rest] = path;
  if (key === undefined) return;
  if (rest.length === 0) {
    target[key] = value;
    return;
  }
  const inner = target[key] ?? {};
  // A section that is no mapping stays, for the schema to report with its line.
  if (!isObject(inner)) return;
  target[key] = inner;
  setIn(inner, rest, value);
}

function isObject(value: Json | undefined): value is { [key: string]: Json } {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function flagName(flag: string): string {
  return `--${flag.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}

/** Mistakes of the file in the order of its lines, then those of flags. */
function describeIssues(error: z.ZodError, source: Source, flagOf: ReadonlyMap<string, string>): string {
  const mistakes = error.issues.flatMap(describeIssue).map(({ path, text }) => {
    const key = path.join('.');
    const flag = flagOf.get(key);
    if (flag !== undefined) return { line: Infinity, text: `${flag}: ${text}` };
    if (source.name === undefined) return { line: 1, text: `${key}: ${text}` };
    const line = lineOfKey(source.document, source.lines, path);
    return { line, text: `${source.name}:${line}, ${key}: ${text}` };
  });
  mistakes.sort((a, b) => (a.line === b.line ? 0 : a.line - b.line));
  return mistakes.map((mistake) => mistake.text).join('\n');
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    Object.values(value).forEach(deepFreeze);
  }
  return value;
}
