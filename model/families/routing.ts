/** Routing of experts as several families share it, and the checks that every family's numbers must pass. */
import { ConfigError } from '../../config/errors.ts';
import type { ExpertsConfig, RoutingConfig } from '../../config/model-config.ts';

export const noGroups: RoutingConfig['groups'] = { count: 1, keep: 1, best: 1 };

export function softmaxRouting({ normalize }: { readonly normalize: boolean }): RoutingConfig {
  return { scoring: 'softmax', biased: false, groups: noGroups, normalize, scale: 1 };
}

/** @throws ConfigError when the numbers of experts and groups do not fit each other */
export function checkedExperts(experts: ExpertsConfig, where: string): ExpertsConfig {
  const { count, perToken, routing } = experts;
  const { groups } = routing;
  if (perToken > count)
    throw new ConfigError(`${where}: ${perToken} experts per token of ${count}; expected at most ${count}`);
  if (count % groups.count !== 0 || groups.keep > groups.count)
    throw new ConfigError(
      `${where}: ${groups.keep} of ${groups.count} groups of ${count} experts; expected a divisor of ${count}, and at most all groups`,
    );
  const perGroup = count / groups.count;
  if (perGroup < groups.best || perGroup * groups.keep < perToken)
    throw new ConfigError(
      `${where}: groups of ${perGroup} experts, ${groups.keep} kept, are too small for ${perToken} experts per token`,
    );
  return experts;
}
