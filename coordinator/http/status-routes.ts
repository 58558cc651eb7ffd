/** What there is and how it does: /health, /v1/models, /v1/cluster, /metrics. */
import type { FastifyInstance } from 'fastify';
import { size } from '../../config/shard-plan.ts';
import { ApiError } from './api-error.ts';
import { modelName, requireModel, type ServerParts } from './parts.ts';

export function addStatusRoutes(server: FastifyInstance, parts: ServerParts, isStopping: () => boolean): void {
  const { supervisor, metrics } = parts;

  // 200 only while requests can be served, so that a load balancer needs to read nothing else.
  server.get('/health', (_request, reply) => {
    const canServe = supervisor.isWorking && !isStopping();
    const error = supervisor.error?.message;
    return reply.status(canServe ? 200 : 503).send({
      status: isStopping() ? 'stopping' : supervisor.state,
      ranks: supervisor.health(),
      ...(error === undefined ? {} : { error }),
    });
  });

  server.get('/metrics', async (_request, reply) =>
    reply.type(metrics.registry.contentType).send(await metrics.registry.metrics()),
  );

  server.get('/v1/models', () => ({ object: 'list', data: parts.modelNames.map((id) => describeModel(parts, id)) }));

  server.get('/v1/models/*', (request) => {
    const id = wildcardOf(request.params);
    requireModel(parts, id);
    return describeModel(parts, id);
  });

  server.get('/v1/cluster', () => describeCluster(parts));
}

function wildcardOf(params: unknown): string {
  if (typeof params === 'object' && params !== null && '*' in params && typeof params['*'] === 'string')
    return params['*'];
  throw new ApiError(404, 'no such model');
}

function describeModel({ created, supervisor }: ServerParts, id: string): object {
  return { id, object: 'model', created, owned_by: 'tpla', max_model_len: supervisor.options.contextTokens };
}

function describeCluster(parts: ServerParts): object {
  const { supervisor, scheduler, activity } = parts;
  const { cluster } = supervisor;
  const { plan, options } = cluster;
  const rates = activity.rates();
  const health = supervisor.health();
  return {
    state: supervisor.state,
    error: supervisor.error?.message ?? null,
    model: modelName(parts),
    has_chat_template: parts.text.hasChatTemplate,
    scheme: plan.scheme,
    scheme_reason: cluster.schemeReason,
    latent_groups: plan.latentGroups,
    context_tokens: options.contextTokens,
    cache_type: options.cacheType,
    load_ms: cluster.loadMs,
    scheduler: { running: scheduler.running, queued: scheduler.queued, slots: scheduler.slots },
    totals: { steps: activity.steps, prompt_tokens: activity.promptTokens, generated_tokens: activity.generatedTokens },
    rates: {
      prompt_tokens_per_second: rates.promptTokensPerSecond,
      generated_tokens_per_second: rates.generatedTokensPerSecond,
      steps_per_second: rates.stepsPerSecond,
    },
    ranks: cluster.ranks.map(
      ({ rank, pid, host, device, transport, weightBytes, cacheBytesPerToken, cacheBytes, rssBytes }) => {
        const shard = plan.ranks[rank];
        const sums = activity.perRank[rank];
        const recent = rates.perRank[rank];
        return {
          rank,
          pid,
          host,
          device,
          transport,
          ...health[rank],
          weight_bytes: weightBytes,
          cache_bytes_per_token: cacheBytesPerToken,
          cache_bytes: cacheBytes,
          rss_bytes: sums?.rssBytes ?? rssBytes,
          heads: shard?.heads,
          prefill_heads: shard?.prefillHeads,
          kv_heads: shard?.kvHeads,
          latent: shard?.latent,
          feed_forward: shard === undefined ? 0 : size(shard.feedForward),
          vocabulary: shard === undefined ? 0 : size(shard.vocab),
          totals: {
            compute_ms: sums?.computeMs ?? 0,
            wait_ms: sums?.waitMs ?? 0,
            bytes_sent: sums?.bytesSent ?? 0,
            bytes_received: sums?.bytesReceived ?? 0,
          },
          per_second: {
            compute_ms: recent?.computeMs ?? 0,
            wait_ms: recent?.waitMs ?? 0,
            bytes_sent: recent?.bytesSent ?? 0,
            bytes_received: recent?.bytesReceived ?? 0,
          },
        };
      },
    ),
    events: supervisor.events,
  };
}
