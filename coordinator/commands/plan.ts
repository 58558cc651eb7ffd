/** `tpla plan [cluster.yaml]`: what each rank would hold and send. Reads headers only and starts nothing. */
import type { Argv } from 'yargs';
import type { Scheme } from '../../config/schemes.ts';
import { cachedLatent, size } from '../../config/shard-plan.ts';
import { openSizes } from '../../model/config-only.ts';
import { layOut } from '../cluster-layout.ts';
import type { CommandContext } from '../command-context.ts';
import { clusterFilePositional, clusterFlags, configFileOf, jsonFlag, type FlagsOf } from '../flags.ts';
import { forecast, type RankForecast } from '../plan-report.ts';
import { schemeCosts, type SchemeCost } from '../scheme-costs.ts';
import { openModel } from '../session.ts';
import { formatBytes, formatRange, formatTable } from '../table.ts';

const planFlags = <T>(command: Argv<T>) => jsonFlag(clusterFlags(command)).positional('file', clusterFilePositional);

type PlanFlags = FlagsOf<ReturnType<typeof planFlags>>;

export function addPlanCommand(program: Argv, context: CommandContext): Argv {
  return program.command(
    'plan [file]',
    'show what each rank would hold and send, without starting any',
    (command) => planFlags(command),
    (flags) => plan(flags, context),
  );
}

async function plan(flags: PlanFlags, context: CommandContext): Promise<void> {
  await using model = await openModel({ ...flags, config: configFileOf(flags) }, context, openSizes);
  const { checkpoint, config } = model;
  const { plan, reason, options } = layOut(checkpoint, config);
  const ranks = forecast(checkpoint, plan, options);
  const { scheme, worldSize, latentGroups, exactTokens } = plan;
  const costs = schemeCosts(checkpoint.config, worldSize, options.cacheType, options.contextTokens);
  if (flags.json) {
    const { contextTokens, slots, cacheType, weights } = options;
    const document = {
      model: checkpoint.path,
      scheme,
      reason,
      worldSize,
      latentGroups,
      exactTokens,
      contextTokens,
      slots,
      cacheType,
    };
    context.write(`${JSON.stringify({ ...document, weights, ranks, schemes: costs })}\n`);
    return;
  }
  const groups = latentGroups > 1 ? ` in ${latentGroups} latent groups` : '';
  const { sinks, window } = exactTokens;
  const exactly = sinks + window > 0 ? `, the first ${sinks} and last ${window} tokens exactly` : '';
  context.write(`scheme ${scheme} on ${worldSize} ranks${groups}${exactly}: ${reason}\n${planTable(ranks)}\n`);
  if (worldSize > 1 && costs.length > 1)
    context.write(
      `\nEvery scheme on ${worldSize} ranks, at ${options.contextTokens} tokens:\n${schemeTable(costs, scheme)}\n`,
    );
}

function schemeTable(costs: readonly SchemeCost[], chosen: Scheme): string {
  return formatTable(
    ['scheme', 'result', 'cache/token/rank', 'sent/token/rank'],
    costs.map((cost) => [
      cost.scheme === chosen ? `${cost.scheme} *` : cost.scheme,
      cost.exact ? 'exact' : 'approximate',
      formatBytes(cost.cacheBytesPerToken),
      formatBytes(cost.bytesSentPerToken),
    ]),
  );
}

function planTable(ranks: readonly RankForecast[]): string {
  const hasExperts = ranks.some((rank) => size(rank.experts) > 0);
  const header = ['rank', 'heads', 'prefill heads', 'KV heads', 'latent', 'feed-forward'];
  header.push(...(hasExperts ? ['experts', 'expert columns'] : []), 'vocabulary');
  header.push('weights', 'cache/token', 'cache', 'sent/token');
  return formatTable(
    header,
    ranks.map((rank) => [
      String(rank.rank),
      formatRange(rank.heads),
      formatRange(rank.prefillHeads),
      formatRange(rank.kvHeads),
      cachedLatent(rank).map(formatRange).join(', ') || '-',
      formatRange(rank.feedForward),
      ...(hasExperts ? [formatRange(rank.experts), formatRange(rank.expertColumns)] : []),
      formatRange(rank.vocab),
      formatBytes(rank.weightBytes),
      formatBytes(rank.cacheBytesPerToken),
      formatBytes(rank.cacheBytes),
      formatBytes(rank.bytesSentPerToken),
    ]),
  );
}
