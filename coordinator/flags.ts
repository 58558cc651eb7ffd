/**
 * Flags that several commands share, each with meaning, range and default, and the checks of numbers that no cluster
 * file holds. What a flag means for the cluster is decided in ../config/load.ts.
 */
import type { ArgumentsCamelCase, Argv } from 'yargs';
import {
  backendNames,
  cacheTypeNames,
  defaultContextCeiling,
  maxExactTokens,
  normNames,
  prefillNames,
  reparameterizationNames,
  schemeNames,
  transportNames,
  weightNames,
} from '../config/cluster.ts';
import { ConfigError } from '../config/errors.ts';
import { expertShardings, maxWorldSize } from '../config/shard-plan.ts';

/** What a command's handler receives. */
export type FlagsOf<Built> = Built extends Argv<infer Flags> ? ArgumentsCamelCase<Flags> : never;

/** Model, ranks and everything that decides how they compute. */
export function clusterFlags<T>(program: Argv<T>) {
  return clusterFlagsWithoutWindow(program).option('window', tplaWindowFlag);
}

/** For commands where --window is the piece of text that they run. */
export function clusterFlagsWithoutWindow<T>(program: Argv<T>) {
  return computeFlags(program)
    .option('config', { type: 'string', describe: 'cluster file (YAML or JSON); flags override it' })
    .option('ranks', {
      type: 'number',
      requiresArg: true,
      describe: `worker processes, 1 to ${maxWorldSize}; default: those of the cluster file, else 2`,
    })
    .option('scheme', {
      choices: schemeNames,
      describe:
        'attention over the ranks; exact: gqa (cache per head), mla (heads), tpla-exact (latent, scores summed), dcp ' +
        '(positions); approximate: tpla (latent), gla (heads and latent); auto: gqa for a model with a cache per head, ' +
        'dcp for a latent one on one host, tpla between hosts (default: auto)',
    })
    .option('bind', {
      type: 'string',
      describe:
        'control endpoint, tcp://ADDRESS:PORT as ranks on other machines reach it (default: that of the cluster file, else auto)',
    })
    .option('keys', {
      type: 'string',
      describe: 'key file of `tpla keys`, or its folder (default: that of the cluster file, else ./keys)',
    })
    .option('allow-no-keys', {
      type: 'boolean',
      describe: 'talk to other machines without keys: whoever reaches the port may join, read and change everything',
    })
    .option('context', {
      type: 'number',
      requiresArg: true,
      describe: `tokens that a sequence may hold; 0: the model's own length, at most ${defaultContextCeiling} (default: 0)`,
    });
}

/** Model and how each rank computes, without what `tpla bench` varies: ranks, scheme, context. */
export function computeFlags<T>(program: Argv<T>) {
  return program
    .option('model', {
      type: 'string',
      describe:
        'Hugging Face folder, GGUF file, or `default` (fetched once); default: that of the cluster file, else `default`',
    })
    .option('latent-groups', {
      type: 'number',
      requiresArg: true,
      describe: 'latent shards of schemes tpla and gla, a divisor of the ranks; 0: as many as ranks (default: 0)',
    })
    .option('reparam', {
      choices: reparameterizationNames,
      describe: 'rotation of the latent before it is cut (default: weighted)',
    })
    .option('corrections', {
      type: 'string',
      describe: 'folder of `tpla rotate`: scheme tpla with its closed-form corrections (default: none)',
    })
    .option('prefill', {
      choices: prefillNames,
      describe: 'exact: the prompt is read with whole latents; sliced: with the arithmetic of decode (default: exact)',
    })
    .option('norm', {
      choices: normNames,
      describe:
        'norm of a DeepSeek latent over all its columns (exact), or in decode over those of the rank (sliced), for comparison with the paper (default: exact)',
    })
    .option('overlap', {
      type: 'number',
      requiresArg: true,
      describe:
        'first latent columns that every latent group of scheme tpla keeps, in place of the last ones: sharper attention for the same cache (default: 0)',
    })
    .option('sinks', {
      type: 'number',
      requiresArg: true,
      describe: `first tokens that scheme tpla scores with whole latents, 0 to ${maxExactTokens} (default: 4 where the latent is cut)`,
    })
    .option('backend', { choices: backendNames, describe: 'what computes (default: ggml)' })
    .option('device', { type: 'string', describe: "device name of the backend for all ranks (default: the backend's)" })
    .option('transport', {
      choices: transportNames,
      describe:
        'what carries the sums between ranks; mpi: only with a cluster file whose ranks mpirun starts (default: auto)',
    })
    .option('threads', { type: 'number', requiresArg: true, describe: 'threads of each rank, 1 to 256 (default: 1)' })
    .option('cache-type', { choices: cacheTypeNames, describe: 'storage of the KV cache (default: f16)' })
    .option('weights', {
      choices: weightNames,
      describe: 'storage of matrices; keep: as in the file, 8-bit floats as f16 (default: keep)',
    })
    .option('expert-sharding', {
      choices: expertShardings,
      describe: 'routed experts: columns of each on every rank, or whole experts dealt out (default: columns)',
    });
}

export function samplingFlags<T>(program: Argv<T>) {
  return program
    .option('max-tokens', number('max-tokens', 1, 1_048_576, true, 256, 'most tokens to generate'))
    .option(
      'temperature',
      number('temperature', 0, 100, false, 0, '0: always the most likely token; higher: more varied'),
    )
    .option('top-k', number('top-k', 0, 1_048_576, true, 40, 'draw from this many most likely tokens; 0: all'))
    .option(
      'top-p',
      number('top-p', 0, 1, false, 0.95, 'draw from the most likely tokens of this total probability; 1: all'),
    )
    .option(
      'min-p',
      number('min-p', 0, 1, false, 0.05, 'draw from tokens at least this likely relative to the best; 0: all'),
    )
    .option(
      'repeat-penalty',
      number('repeat-penalty', 0.01, 100, false, 1, 'over 1: the last 64 tokens become less likely'),
    )
    .option('seed', {
      ...optionalNumber('seed', 0, 0xffffffff, true, 'of the random numbers; the same seed gives the same text'),
      defaultDescription: 'random',
    })
    .option('stop', {
      type: 'string',
      array: true,
      describe: 'text that ends the answer and is not shown; may be given several times',
    });
}

export function jsonFlag<T>(program: Argv<T>) {
  return program.option('json', {
    type: 'boolean',
    default: false,
    describe: 'print one JSON document on stdout and nothing else there',
  });
}

/** Of the commands that take the cluster file as an argument. */
export const clusterFilePositional = {
  type: 'string',
  describe: 'cluster file (YAML or JSON); the same as --config',
} as const;

/** @throws ConfigError when the file is given as an argument and as a flag */
export function configFileOf(flags: {
  readonly file: string | undefined;
  readonly config: string | undefined;
}): string | undefined {
  const { file, config } = flags;
  if (file === undefined || config === undefined) return file ?? config;
  throw new ConfigError(`cluster file: given twice (${file} and --config ${config}); give one`);
}

/** Of the commands that hold chats. */
export const chatTemplateFlag = {
  type: 'string',
  describe: "file with the chat template (Jinja) to use instead of the model's own",
} as const;

/** Of the commands that run given tokens. */
export const decodeFromFlag = {
  ...optionalNumber(
    'decode-from',
    0,
    1_048_576,
    true,
    'prefill this many tokens exactly, the rest with the attention of decode',
  ),
  defaultDescription: 'all are prefilled',
};

/** The window of scheme tpla. */
export const tplaWindowFlag = {
  type: 'number',
  requiresArg: true,
  describe: `last tokens that scheme tpla scores with whole latents, 0 to ${maxExactTokens} (default: 64 where the latent is cut)`,
} as const;

/** The same of commands where --window is a piece of text; what --window is elsewhere. */
export const recentWindowFlag = {
  type: 'number',
  requiresArg: true,
  describe: `last tokens that scheme tpla scores with whole latents, --window of other commands, 0 to ${maxExactTokens} (default: 64 where the latent is cut)`,
} as const;

/** Of the commands that measure for a long time. */
export const outFlag = {
  type: 'string',
  describe: 'file for the report as JSON; an interrupted run goes on where it was when the command is repeated',
} as const;

/** Of commands that start ranks for their own work: on this machine, without a cluster file. @param ranks what they do */
export function ownRanksFlags<T>(command: Argv<T>, ranks: string) {
  return command
    .option('ranks', { type: 'number', requiresArg: true, describe: ranks })
    .option('backend', { choices: backendNames, describe: 'what computes (default: ggml)' })
    .option('transport', {
      choices: transportNames.filter((name) => name !== 'mpi'),
      describe: 'what carries the sums between ranks (default: auto)',
    })
    .option('threads', { type: 'number', requiresArg: true, describe: 'threads of each rank, 1 to 256 (default: 1)' });
}

/** A number flag with its range in the help and in the refusal. */
export function number(name: string, min: number, max: number, whole: boolean, value: number, meaning: string) {
  return {
    ...optionalNumber(name, min, max, whole, meaning),
    default: value,
    coerce: (given: number): number => inRange(name, min, max, whole, given),
  } as const;
}

/** The same without a default. */
export function optionalNumber(name: string, min: number, max: number, whole: boolean, meaning: string) {
  return {
    type: 'number',
    requiresArg: true,
    describe: `${meaning} (${rangeText(min, max, whole)})`,
    coerce: (given: number | undefined): number | undefined =>
      given === undefined ? undefined : inRange(name, min, max, whole, given),
  } as const;
}

function inRange(name: string, min: number, max: number, whole: boolean, given: number): number {
  if (given >= min && given <= max && (!whole || Number.isInteger(given))) return given;
  throw new ConfigError(`--${name}: expected ${rangeText(min, max, whole)}, got ${given}`);
}

function rangeText(min: number, max: number, whole: boolean): string {
  return `${whole ? 'whole number ' : ''}${min} to ${max}`;
}
