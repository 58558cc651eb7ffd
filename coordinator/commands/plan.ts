/** `tpla plan [cluster.yaml]`: what each rank would hold and send. Reads headers only and starts nothing. */
import type { Argv } from 'yargs';
import { openSizes } from '../../model/config-only.ts';
import { layOut } from '../cluster-layout.ts';
import type { CommandContext } from '../command-context.ts';
import { clusterFlags, jsonFlag, type FlagsOf } from '../flags.ts';
import { forecast, type RankForecast } from '../plan-report.ts';
import { openModel } from '../session.ts';
import { size } from '../../config/shard-plan.ts';
import { formatBytes, formatRange, formatTable } from '../table.ts';

const planFlags = <T>(command: Argv<T>) =>
  jsonFlag(clusterFlags(command)).positional('file', {
    type: 'string',
    describe: 'cluster file; the same as --config',
  });

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
  await using model = await openModel({ ...flags, config: flags.file ?? flags.config }, context, openSizes);
  const { checkpoint, config } = model;
  const { plan, reason, options } = layOut(checkpoint, config);
  const ranks = forecast(checkpoint, plan, options);
  const { scheme, worldSize, latentGroups } = plan;
  if (flags.json) {
    const { contextTokens, slots, cacheType, weights } = options;
    const document = {
      model: checkpoint.path,
      scheme,
      reason,
      worldSize,
      latentGroups,
      contextTokens,
      slots,
      cacheType,
    };
    context.write(`${JSON.stringify({ ...document, weights, ranks })}\n`);
    return;
  }
  const groups = latentGroups > 1 ? ` in ${latentGroups} latent groups` : '';
  context.write(`scheme ${scheme} on ${worldSize} ranks${groups}: ${reason}\n${planTable(ranks)}\n`);
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
      formatRange(rank.latent),
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
