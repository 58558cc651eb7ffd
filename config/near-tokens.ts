/**
 * What a model's near tokens (NearTokens of model-config.ts) mean for a plan: which tokens a rank keeps beside its cache.
 * Read next: worker/schemes/near-heads.ts.
 */
import { ConfigError } from './errors.ts';
import type { ModelConfig, NearTokens } from './model-config.ts';

type TokenCounts = Pick<NearTokens, 'sinks' | 'window'>;

/** undefined: the model has none. */
export function nearTokens({ attention }: ModelConfig): TokenCounts | undefined {
  if (attention.kind !== 'mla' || attention.near === undefined) return undefined;
  const { sinks, window } = attention.near;
  return { sinks, window };
}

/** @throws ConfigError for exact tokens that were asked for beside them */
export function checkNearTokens(model: ModelConfig, asked: TokenCounts | undefined): void {
  const near = nearTokens(model);
  const { sinks, window } = asked ?? { sinks: 0, window: 0 };
  if (near !== undefined && sinks + window > 0)
    throw new ConfigError(
      `window: this model was converted for a window of ${near.window} and ${near.sinks} sinks, got ${window} and ${sinks}; leave both out`,
    );
}
