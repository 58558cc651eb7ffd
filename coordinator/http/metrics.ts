/** Numbers for Prometheus, in a registry of this server alone. Read next: status-routes.ts, which serves them. */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { Activity } from '../activity.ts';
import type { FinishReason, Usage } from '../generation.ts';
import type { Scheduler } from '../scheduler.ts';
import type { Supervisor } from '../supervisor.ts';

const latencySeconds = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

export class Metrics {
  readonly registry = new Registry();
  readonly #requests = this.#counter('tpla_http_requests_total', 'HTTP requests answered', ['route', 'status']);
  readonly #generations = this.#counter('tpla_generations_total', 'generations ended', ['finish_reason']);
  readonly #steps = this.#histogram('tpla_step_seconds', 'time of one step of all ranks', ['phase']);
  readonly #firstToken = this.#histogram('tpla_time_to_first_token_seconds', 'from a request to its first token', []);

  /** @param ms of one step */
  step(phase: string, ms: number): void {
    this.#steps.observe({ phase }, ms / 1000);
  }

  request(route: string, status: number): void {
    this.#requests.inc({ route, status });
  }

  generation(reason: FinishReason | 'cancelled' | 'failed', usage: Usage | undefined): void {
    this.#generations.inc({ finish_reason: reason });
    if (usage !== undefined) this.#firstToken.observe(usage.ttftMs / 1000);
  }

  /** Gauges that are read when someone asks. */
  watch(supervisor: Supervisor, scheduler: Scheduler, activity: Activity): void {
    this.#gauge('tpla_running', 'generations that hold a slot', () => scheduler.running);
    this.#gauge('tpla_queued', 'generations that wait for a slot', () => scheduler.queued);
    this.#gauge('tpla_slots', 'generations that can run at once', () => scheduler.slots);
    this.#gauge('tpla_up', '1 while requests can be served', () => (supervisor.isWorking ? 1 : 0));
    this.#gauge('tpla_prompt_tokens_total', 'prompt tokens computed', () => activity.promptTokens);
    this.#gauge('tpla_generated_tokens_total', 'tokens generated', () => activity.generatedTokens);
    const refused = () => supervisor.cluster.refused;
    this.#gauge('tpla_refused_handshakes_total', 'connections with a wrong key or none', () => refused().handshakes);
    this.#gauge('tpla_refused_messages_total', 'control messages turned away', () => refused().messages);
    const perRank = (name: string, help: string, values: () => readonly number[]): void => {
      const gauge = new Gauge({
        name,
        help,
        labelNames: ['rank'],
        registers: [this.registry],
        collect: () => values().forEach((value, rank) => gauge.set({ rank }, value)),
      });
    };
    const health = () => supervisor.health();
    perRank('tpla_rank_up', '1 while the rank answers', () => health().map(({ state }) => (state === 'ok' ? 1 : 0)));
    perRank('tpla_rank_restarts_total', 'restarts blamed on the rank', () => health().map(({ restarts }) => restarts));
    perRank('tpla_rank_weight_bytes', 'weights held', () => supervisor.cluster.ranks.map((r) => r.weightBytes));
    perRank('tpla_rank_cache_bytes_per_token', 'cache of one token', () =>
      supervisor.cluster.ranks.map((rank) => rank.cacheBytesPerToken),
    );
    const sums = (of: (rank: Activity['perRank'][number]) => number) => () => activity.perRank.map(of);
    perRank(
      'tpla_rank_compute_seconds_total',
      'time spent computing',
      sums((rank) => rank.computeMs / 1000),
    );
    perRank(
      'tpla_rank_wait_seconds_total',
      'time spent waiting for ranks',
      sums((rank) => rank.waitMs / 1000),
    );
    perRank(
      'tpla_rank_sent_bytes_total',
      'bytes sent to ranks',
      sums((rank) => rank.bytesSent),
    );
    perRank(
      'tpla_rank_received_bytes_total',
      'bytes received from ranks',
      sums((rank) => rank.bytesReceived),
    );
    perRank(
      'tpla_rank_rss_bytes',
      'memory of the process',
      sums((rank) => rank.rssBytes),
    );
  }

  #counter<Label extends string>(name: string, help: string, labelNames: Label[]): Counter<Label> {
    return new Counter({ name, help, labelNames, registers: [this.registry] });
  }

  #histogram<Label extends string>(name: string, help: string, labelNames: Label[]): Histogram<Label> {
    return new Histogram({ name, help, labelNames, buckets: latencySeconds, registers: [this.registry] });
  }

  #gauge(name: string, help: string, value: () => number): void {
    const gauge: Gauge = new Gauge({
      name,
      help,
      registers: [this.registry],
      collect: () => gauge.set(value()),
    });
  }
}
