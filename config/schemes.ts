/**
 * The names of the schemes, what distinguishes them, and which one `auto` means. Read next: shard-plan.ts, which cuts a
 * model as a scheme says, and docs/schemes.md.
 */
import type { ModelConfig } from './model-config.ts';

/** What each shards, with its cost: docs/schemes.md. */
export const schemes = ['gqa', 'mla', 'tpla', 'tpla-exact', 'dcp', 'gla'] as const;
export type Scheme = (typeof schemes)[number];

/**
 * Closed-form corrections of `tpla`, in the order in which they are fitted: order of the latent's columns, keys that guess
 * what a shard lacks, offsets of old tokens beside those scored exactly, refitted values. Read next: model/tpla/decode-fit.ts.
 */
export const fitSteps = ['order', 'keys', 'offsets', 'values'] as const;
export type FitStep = (typeof fitSteps)[number];

/** Whether the scheme computes what one rank would, to rounding. */
export function isExact(scheme: Scheme, latentGroups: number): boolean {
  return latentGroups === 1 || scheme === 'tpla-exact';
}

/** The latent groups of a scheme when the user names no number. */
export function defaultLatentGroups(scheme: Scheme, worldSize: number): number {
  return cutsLatent(scheme) ? worldSize : 1;
}

/**
 * The scheme behind `auto`, and why, in words for the user. On one host a small exchange costs microseconds and the
 * exact schemes cost no accuracy; between hosts every exchange is a round trip, and `tpla` has none of its own.
 */
export function chooseScheme(
  model: ModelConfig,
  worldSize: number,
  oneHost: boolean,
): { scheme: Scheme; reason: string } {
  if (model.attention.kind === 'gqa')
    return { scheme: 'gqa', reason: 'the model has a key-value cache per head; convert it for a latent one' };
  if (worldSize === 1) return { scheme: 'mla', reason: 'one rank holds the whole latent' };
  if (oneHost)
    return {
      scheme: 'dcp',
      reason: `exact, and each of ${worldSize} ranks caches 1/${worldSize} of the tokens; what it exchanges is cheap on one host`,
    };
  return {
    scheme: 'tpla',
    reason: `the latent is cut over ${worldSize} ranks on several hosts, without an exchange inside attention; approximate`,
  };
}

/** Whether ranks keep columns of the latent, not all of it. */
export function cutsLatent(scheme: Scheme): boolean {
  return scheme === 'tpla' || scheme === 'tpla-exact' || scheme === 'gla';
}

/** The numbers of latent groups that worldSize allows: its divisors. */
export function validLatentGroups(worldSize: number): number[] {
  return Array.from({ length: worldSize }, (_, i) => i + 1).filter((groups) => worldSize % groups === 0);
}
