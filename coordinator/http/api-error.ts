/**
 * Errors as OpenAI clients expect them: a status and a body {error: {message, type, param, code}}. Every failure of a
 * request becomes one of these here and nowhere else. Read next: server.ts, which sends them.
 */
import { ConfigError, InvariantError, PeerError } from '../../config/errors.ts';
import { QueueFullError } from '../scheduler.ts';

export interface ApiErrorDetails {
  /** The field of the request that is wrong, `messages[1].role`. */
  readonly param?: string | undefined;
  readonly code?: string | undefined;
  readonly headers?: Readonly<Record<string, string>> | undefined;
  readonly cause?: unknown;
}

export class ApiError extends Error {
  override readonly name = 'ApiError';
  readonly status: number;
  readonly param: string | null;
  readonly code: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, message: string, { param, code, headers, cause }: ApiErrorDetails = {}) {
    super(message, { cause });
    this.status = status;
    this.param = param ?? null;
    this.code = code ?? null;
    this.headers = headers ?? {};
  }

  get body(): { error: { message: string; type: string; param: string | null; code: string | null } } {
    return { error: { message: this.message, type: typeOf(this.status), param: this.param, code: this.code } };
  }
}

/** The request came while the server is stopping. */
export class StoppingError extends Error {
  override readonly name = 'StoppingError';

  constructor() {
    super('this server is stopping; send the request to another, or try again later');
  }
}

/** @param retryAfterSeconds what a client that found the queue full should wait */
export function toApiError(error: unknown, retryAfterSeconds: number): ApiError {
  if (error instanceof ApiError) return error;
  const retry = { 'retry-after': String(retryAfterSeconds) };
  if (error instanceof QueueFullError)
    return new ApiError(429, error.message, { code: 'queue_full', headers: retry, cause: error });
  if (error instanceof StoppingError)
    return new ApiError(503, error.message, { code: 'stopping', headers: { ...retry, connection: 'close' } });
  if (error instanceof PeerError) return new ApiError(503, error.message, { code: 'rank_failed', cause: error });
  if (error instanceof ConfigError) return new ApiError(400, error.message, { cause: error });
  if (error instanceof InvariantError)
    return new ApiError(500, `this is a bug: ${error.message}`, { code: 'internal_error', cause: error });
  return fromFastify(error);
}

/** What fastify refuses by itself: a body too large, not JSON, or of another type. */
function fromFastify(error: unknown): ApiError {
  if (!(error instanceof Error)) return new ApiError(500, String(error));
  const status = 'statusCode' in error && typeof error.statusCode === 'number' ? error.statusCode : 500;
  const code = 'code' in error && typeof error.code === 'string' ? error.code : undefined;
  return new ApiError(status, error.message, { code, cause: error });
}

function typeOf(status: number): string {
  if (status === 401) return 'authentication_error';
  if (status === 404) return 'not_found_error';
  if (status === 429) return 'rate_limit_error';
  return status < 500 ? 'invalid_request_error' : 'server_error';
}
