/**
 * The only file that opens ZeroMQ sockets: every one has its linger, timeouts and limits set here. Each socket has one
 * owner, one receive in flight and sends one after another. Read next: control.ts, mailbox.ts (the owners).
 */
import { capability, Dealer, Pull, Push, Router } from 'zeromq';
import { ConfigError, InvariantError, messageOf, PeerError } from '../config/errors.ts';
import { freshEndpoint } from './endpoint.ts';
import { maxPayloadBytes } from './frame.ts';

export type { Dealer, Pull, Push, Router } from 'zeromq';

const sendTimeoutMs = 10_000;
/** The coordinator's queues to its ranks are never full; what cannot take a message is a connection that is ending. */
const routerSendTimeoutMs = 100;
/** Last words (stop, failed, the last frame of a sum) may still leave after close; a dead peer delays the exit this long. */
const lingerMs = 500;

/** Whether connections can be encrypted and authenticated. */
export const hasCurve = capability.curve === true;

export interface Heartbeats {
  /** Between questions to a silent peer. */
  readonly intervalMs: number;
  /** Without an answer the connection is given up after this long. */
  readonly timeoutMs: number;
}

/** @throws ConfigError when the address cannot be bound */
export async function bindRouter(
  endpoint: string,
  heartbeats: Heartbeats,
): Promise<{ socket: Router; endpoint: string }> {
  const socket = new Router({
    ...controlLimits,
    // A send to a rank that is gone fails instead of vanishing.
    mandatory: true,
    sendTimeout: routerSendTimeoutMs,
    heartbeatInterval: heartbeats.intervalMs,
    heartbeatTimeout: heartbeats.timeoutMs,
  });
  return { socket, endpoint: await bindSocket(socket, endpoint, 'control') };
}

/** null: nobody answered the handshake in `timeoutMs`. */
export async function connectDealer(endpoint: string, timeoutMs: number): Promise<Dealer | null> {
  const socket = new Dealer(controlLimits);
  if (await connectSocket(socket, endpoint, timeoutMs)) return socket;
  socket.close();
  return null;
}

/** @throws ConfigError when the address cannot be bound */
export async function bindPull(endpoint: string, maxFrameBytes: number): Promise<{ socket: Pull; endpoint: string }> {
  const socket = new Pull({ ...common, ...receiving(maxFrameBytes) });
  return { socket, endpoint: await bindSocket(socket, endpoint, 'ring') };
}

export function connectPush(endpoint: string, timeoutMs: number): Push {
  // immediate: without a connected peer a send waits for its timeout instead of vanishing into a queue. (Not for a
  // socket that also receives: on a lost connection libzmq would drop what had arrived.)
  const socket = new Push({ ...common, ...sending(timeoutMs), immediate: true });
  socket.connect(endpoint);
  return socket;
}

/** What every socket of ours has: none may keep a process alive for long. */
const common = {
  linger: lingerMs,
  // Answered by ZeroMQ's own thread, also while a kernel runs: a host that is gone ends the connection.
  heartbeatInterval: 1000,
  heartbeatTimeout: 5000,
  heartbeatTimeToLive: 5000,
};

/** What every socket that sends has: none may wait for ever, or queue without end. */
function sending(sendTimeout: number) {
  return { sendTimeout, sendHighWaterMark: 1000 };
}

/** What every socket that receives has. Each receive sets its own deadline; without one it waits until close. */
function receiving(maxMessageSize: number) {
  return { maxMessageSize, receiveTimeout: -1, receiveHighWaterMark: 1000 };
}

const controlLimits = { ...common, ...sending(sendTimeoutMs), ...receiving(maxPayloadBytes) };

async function bindSocket(socket: Router | Pull, requested: string, name: string): Promise<string> {
  const endpoint = await freshEndpoint(requested, name);
  try {
    await socket.bind(endpoint);
  } catch (cause) {
    socket.close();
    throw new ConfigError(`cannot bind ${endpoint}: ${messageOf(cause)}; choose a free address`, { cause });
  }
  return socket.lastEndpoint ?? endpoint;
}

/** Resolves true when the peer has answered the handshake, false when `timeoutMs` have passed. */
function connectSocket(socket: Dealer, endpoint: string, timeoutMs: number): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(false), timeoutMs);
    socket.events.on('handshake', () => {
      clearTimeout(timer);
      resolve(true);
    });
    socket.connect(endpoint);
  });
}

/** @throws PeerError: `what()`, and why */
export async function sendWithin(
  socket: Router | Dealer | Push,
  frames: Buffer | Buffer[],
  what: () => string,
): Promise<void> {
  try {
    await socket.send(frames);
  } catch (cause) {
    if (isCode(cause, 'EBUSY')) throw busy('send', cause);
    const isLate = isCode(cause, 'EAGAIN') && !socket.closed;
    throw new PeerError(`${what()}: ${isLate ? `not taken in ${socket.sendTimeout} ms` : messageOf(cause)}`, { cause });
  }
}

/** null: `timeoutMs` (-1: no limit) have passed, or the socket was closed meanwhile. */
export async function receiveWithin(socket: Router | Dealer | Pull, timeoutMs: number): Promise<Buffer[] | null> {
  if (socket.closed) return null;
  try {
    socket.receiveTimeout = timeoutMs;
    return await socket.receive();
  } catch (cause) {
    if (isCode(cause, 'EAGAIN')) return null;
    throw isCode(cause, 'EBUSY') ? busy('receive', cause) : cause;
  }
}

function busy(action: string, cause: unknown): InvariantError {
  return new InvariantError(`a second ${action} on one socket while the first is in flight`, { cause });
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}
