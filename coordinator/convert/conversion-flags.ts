/**
 * The flags that say how a model is converted: of `tpla convert`, and of `tpla run|serve --convert`. None has a default
 * here, so that one without --convert is noticed; conversionSettings fills them in. Read next: conversion-options.ts.
 */
import type { Argv } from 'yargs';
import { ConfigError } from '../../config/errors.ts';
import type { ExactTokens } from '../../config/shard-plan.ts';
import { type MatrixType, matrixTypes } from '../../model/transmla/encode-floats.ts';
import { type RecipeStep, recipeStepNames, recipeSteps } from '../../model/transmla/recipe-steps.ts';
import { optionalNumber } from '../flags.ts';
import { defaultCacheRatio } from './choose-settings.ts';
import { conversionMethods, type ConversionMethod, type ConversionRequest } from './conversion-options.ts';

export interface ConversionFlags {
  readonly exact?: boolean | undefined;
  readonly portable?: boolean | undefined;
  readonly method?: ConversionMethod | undefined;
  readonly without?: readonly RecipeStep[] | undefined;
  readonly cacheRatio?: number | undefined;
  readonly ropeDim?: number | undefined;
  readonly kvRank?: number | undefined;
  readonly freqfold?: number | 'auto' | undefined;
  readonly balance?: number | 'auto' | undefined;
  readonly calibration?: readonly string[] | undefined;
  readonly calibrationTokens?: number | undefined;
  readonly dtype?: MatrixType | undefined;
  readonly keepWindow?: number | undefined;
  readonly keepSinks?: number | undefined;
}

/** By the names on the command line. */
const flagNames = {
  exact: 'exact',
  portable: 'portable',
  method: 'method',
  without: 'without',
  cacheRatio: 'cache-ratio',
  ropeDim: 'rope-dim',
  kvRank: 'kv-rank',
  freqfold: 'freqfold',
  balance: 'balance',
  calibration: 'calibration',
  calibrationTokens: 'calibration-tokens',
  dtype: 'dtype',
  keepWindow: 'keep-window',
  keepSinks: 'keep-sinks',
} as const satisfies Record<keyof ConversionFlags, string>;

export type ConversionSettings = Pick<
  ConversionRequest,
  'method' | 'without' | 'sizes' | 'near' | 'calibration' | 'calibrationTokens' | 'dtype' | 'untouched'
>;

/** Nearly all that a latent loses is lost there: docs/conversion.md, step 7. */
const usualNear: ExactTokens = { sinks: 4, window: 64 };

/** An exact conversion fits nothing: its text only serves to measure. */
const defaultCalibrationTokens = { fitted: 8192, exact: 512 };

export function conversionFlags<T>(command: Argv<T>) {
  return sizeFlags(command)
    .option('method', {
      choices: conversionMethods,
      defaultDescription: 'recipe',
      describe: 'recipe: errors weighed by what they do, least loss; published: TransMLA as in its paper and code',
    })
    .option('without', {
      array: true,
      choices: recipeStepNames,
      defaultDescription: 'none',
      describe: `recipe: steps to leave out, to see what each is worth. ${recipeStepNames.map((step) => `${step}: ${recipeSteps[step]}`).join('; ')}`,
    })
    .option('calibration', {
      type: 'string',
      array: true,
      defaultDescription: 'self',
      describe:
        'UTF-8 text to fit on, ideally like the later use; may be given several times, each file gives an equal share; self: text that the model writes itself',
    })
    .option('calibration-tokens', {
      ...optionalNumber(
        'calibration-tokens',
        64,
        10_000_000,
        true,
        'tokens to fit on; a few more are held out to judge by',
      ),
      defaultDescription: `${defaultCalibrationTokens.fitted}; with --exact ${defaultCalibrationTokens.exact}`,
    })
    .option('keep-window', {
      ...optionalNumber(
        'keep-window',
        0,
        4096,
        true,
        "recipe: last tokens that keep the source's keys and values beside the latent of every token, constant memory per sequence; 0: none",
      ),
      defaultDescription: `${usualNear.window}; 0 with --exact, --portable and --method published`,
    })
    .option('keep-sinks', {
      ...optionalNumber('keep-sinks', 0, 4096, true, 'first tokens that do too'),
      defaultDescription: `${usualNear.sinks} where last ones do`,
    })
    .option('dtype', {
      choices: matrixTypes,
      describe:
        'type of all written matrices; q8_0: of those converted where their rows are whole blocks of 32, smaller and faster',
      defaultDescription:
        'for those converted f16, q8_0 where the source has its attention in blocks, with --exact f32; the others stay bit for bit as they are',
    });
}

/** `--convert` and what belongs to it. */
export function convertFlag<T>(command: Argv<T>) {
  return conversionFlags(
    command.option('convert', {
      type: 'boolean',
      default: false,
      describe: 'convert the model to a latent cache first; kept in the cache folder and found there the next time',
    }),
  );
}

function sizeFlags<T>(command: Argv<T>) {
  return command
    .option('exact', {
      type: 'boolean',
      describe: 'keep every number of the cache and every rotary pair: logits equal those of the source',
    })
    .option('portable', {
      type: 'boolean',
      describe:
        'write what stock DeepSeek-V3 code loads. It cannot carry: rotary pairs chosen per layer (the fastest frequencies ' +
        'keep theirs, one slot each), sliding windows, caps, norms behind sublayers, experts, biases on queries, scaled ' +
        'rotary frequencies, quantised blocks',
    })
    .option('cache-ratio', {
      ...optionalNumber('cache-ratio', 0, 1, false, 'cache of the result over that of the source; sizes are searched'),
      defaultDescription: `${defaultCacheRatio}, unless both --rope-dim and --kv-rank are given`,
    })
    .option('rope-dim', {
      ...optionalNumber('rope-dim', 2, 1_048_576, true, 'numbers of the shared rotary key, even'),
      defaultDescription: 'searched',
    })
    .option('kv-rank', {
      ...optionalNumber('kv-rank', 1, 1_048_576, true, 'numbers of the latent'),
      defaultDescription: 'what the cache ratio leaves',
    })
    .option('freqfold', {
      type: 'string',
      defaultDescription: 'auto',
      describe: 'published: neighbouring rotary frequencies treated as equal; 1: none; auto: searched',
      coerce: (given: string | undefined) => autoOrNumber('freqfold', given),
    })
    .option('balance', {
      type: 'string',
      defaultDescription: 'auto',
      describe: 'published: weight of values against nope keys in the PCA; auto: 1 = equal mean norms',
      coerce: (given: string | undefined) => autoOrNumber('balance', given),
    });
}

/** @throws ConfigError where flags contradict each other */
export function conversionSettings(flags: ConversionFlags): ConversionSettings {
  const exact = flags.exact ?? false;
  const calibrationTokens = flags.calibrationTokens ?? defaultCalibrationTokens[exact ? 'exact' : 'fitted'];
  if (flags.portable === true && (exact || flags.method === 'published'))
    throw new ConfigError('portable: belongs to --method recipe; leave out --exact and --method published');
  if (flags.dtype === 'q8_0' && (exact || flags.portable === true))
    throw new ConfigError(
      `dtype: q8_0 ${exact ? 'rounds what --exact is to keep' : 'is unknown to stock code'}; leave it out or use f16, bf16 or f32`,
    );
  return {
    method: flags.method ?? 'recipe',
    without: new Set(flags.without),
    sizes: {
      exact,
      portable: flags.portable ?? false,
      ropeDim: flags.ropeDim ?? null,
      kvRank: flags.kvRank ?? null,
      cacheRatio: flags.cacheRatio ?? null,
      freqfold: flags.freqfold ?? 'auto',
      balance: flags.balance ?? 'auto',
    },
    near: nearTokensOf(flags, calibrationTokens),
    calibration: flags.calibration ?? ['self'],
    calibrationTokens,
    dtype: flags.dtype ?? (exact ? 'f32' : flags.portable === true ? 'f16' : 'auto'),
    // Stock code knows no quantised blocks.
    untouched: (flags.dtype === 'q8_0' ? undefined : flags.dtype) ?? (flags.portable === true ? 'f16' : 'keep'),
  };
}

/** What belongs to the recipe in its own form keeps first and last tokens unless told otherwise. */
function nearTokensOf(flags: ConversionFlags, calibrationTokens: number): ExactTokens | null {
  const other = [
    flags.exact === true && '--exact',
    flags.portable === true && '--portable',
    flags.method === 'published' && '--method published',
  ].filter((name) => name !== false);
  if (other.length > 0 && (flags.keepWindow ?? flags.keepSinks ?? 0) > 0)
    throw new ConfigError(`keep-window: belongs to --method recipe in its own form; leave out ${other.join(', ')}`);
  // Short calibration windows keep something to fit.
  const usual = Math.min(usualNear.window, Math.floor(calibrationTokens / 16));
  const window = flags.keepWindow ?? (other.length > 0 ? 0 : usual);
  if (window > 0) return { sinks: flags.keepSinks ?? usualNear.sinks, window };
  if ((flags.keepSinks ?? 0) > 0)
    throw new ConfigError(
      `keep-sinks: ${flags.keepSinks} first tokens are kept only beside last ones; give --keep-window too`,
    );
  return null;
}

/** @throws ConfigError naming the flags that mean nothing where nothing is converted */
export function refuseConversionFlags(flags: ConversionFlags): void {
  // Object.entries forgets the key type.
  const entries = Object.entries(flagNames) as [keyof ConversionFlags, string][];
  const given = entries.filter(([key]) => flags[key] !== undefined).map(([, name]) => `--${name}`);
  if (given.length > 0)
    throw new ConfigError(`${given.join(', ')}: says how to convert the model; give --convert too, or leave it out`);
}

function autoOrNumber(name: string, given: string | undefined): number | 'auto' | undefined {
  if (given === 'auto' || given === undefined) return given;
  const value = Number(given);
  if (given.trim() === '' || !Number.isFinite(value))
    throw new ConfigError(`--${name}: expected auto or a number, got ${JSON.stringify(given)}`);
  return value;
}
