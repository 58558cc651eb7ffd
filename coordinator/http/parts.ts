/** What the routes share: the running cluster and what the server was told about itself. */
import type { Activity } from '../activity.ts';
import type { Scheduler } from '../scheduler.ts';
import type { Supervisor } from '../supervisor.ts';
import type { ModelText } from '../text.ts';
import { ApiError } from './api-error.ts';
import type { Metrics } from './metrics.ts';

export interface ServerParts {
  readonly supervisor: Supervisor;
  readonly scheduler: Scheduler;
  readonly activity: Activity;
  readonly metrics: Metrics;
  readonly text: ModelText;
  /** What clients may call the model; the first is the one that answers carry. Not empty. */
  readonly modelNames: readonly string[];
  /** Unix seconds of the start. */
  readonly created: number;
  /** Undefined: none is asked for. */
  readonly apiKey: string | undefined;
  /** Origin that browsers may call from, `*` for any; undefined: only pages of this server. */
  readonly corsOrigin: string | undefined;
}

export function modelName({ modelNames }: ServerParts): string {
  return modelNames[0] ?? '';
}

/** @throws ApiError 404 naming the models there are */
export function requireModel({ modelNames }: ServerParts, asked: string | null | undefined): void {
  if (asked === undefined || asked === null || modelNames.includes(asked)) return;
  throw new ApiError(404, `model ${JSON.stringify(asked)}: not served here; use ${modelNames.join(' or ')}`, {
    param: 'model',
    code: 'model_not_found',
  });
}

/** @throws ApiError 503 naming the rank, when the cluster is lost for good */
export function requireCluster({ supervisor }: ServerParts): void {
  if (supervisor.state !== 'failed') return;
  throw new ApiError(503, supervisor.error?.message ?? 'the cluster has failed', { code: 'rank_failed' });
}
