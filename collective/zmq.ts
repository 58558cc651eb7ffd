/**
 * The only file that opens ZeroMQ sockets: every one has its linger, timeouts and limits set here. Each socket has one
 * owner, one receive in flight and sends one after another. Read next: control.ts, mailbox.ts (the owners).
 */
import { capability, Context, Dealer, Pull, Push, Router } from 'zeromq';
import { ConfigError, InvariantError, messageOf, PeerError } from '../config/errors.ts';
import { freshEndpoint } from './endpoint.ts';
import { maxPayloadBytes } from './frame.ts';

export { curveKeyPair } from 'zeromq';
export type { Dealer, Pull, Push, Router } from 'zeromq';

const sendTimeoutMs = 10_000;
/** Handshakes in which the other side hung up, until its key is taken for another. */
const patientHandshakes = 3;
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

/** Socket options of CURVE; see curve.ts, which makes them. */
export interface CurveOptions {
  /** Of the handler that judges who connects; only for a socket that binds. */
  readonly context?: Context;
  readonly curvePublicKey: string;
  readonly curveSecretKey: string;
  readonly curveServer?: boolean;
  readonly curveServerKey?: string;
  readonly zapDomain?: string;
}

/** @throws ConfigError when the address cannot be bound */
export async function bindRouter(
  endpoint: string,
  heartbeats: Heartbeats,
  curve?: CurveOptions,
): Promise<{ socket: Router; endpoint: string }> {
  const socket = new Router({
    ...controlLimits,
    ...curve,
    // A send to a rank that is gone fails instead of vanishing.
    mandatory: true,
    sendTimeout: routerSendTimeoutMs,
    heartbeatInterval: heartbeats.intervalMs,
    heartbeatTimeout: heartbeats.timeoutMs,
  });
  return { socket, endpoint: await bindSocket(socket, endpoint, 'control') };
}

/** Why no connection came about. */
export type NoConnection = 'late' | 'wrong key' | 'keys on one side only';

/** `failure` says why, when the peer does not complete the handshake in `timeoutMs` (Infinity: no limit) or refuses it */
export async function connectDealer(
  endpoint: string,
  timeoutMs: number,
  curve?: CurveOptions,
): Promise<{ socket: Dealer; failure: null } | { socket: null; failure: NoConnection }> {
  const socket = new Dealer({ ...controlLimits, ...curve });
  const failure = await connectSocket(socket, endpoint, timeoutMs, curve !== undefined);
  if (failure === null) return { socket, failure };
  socket.close();
  return { socket: null, failure };
}

/** @throws ConfigError when the address cannot be bound */
export async function bindPull(
  endpoint: string,
  maxFrameBytes: number,
  curve?: CurveOptions,
): Promise<{ socket: Pull; endpoint: string }> {
  const socket = new Pull({ ...common, ...receiving(maxFrameBytes), ...curve });
  return { socket, endpoint: await bindSocket(socket, endpoint, 'ring') };
}

export function connectPush(endpoint: string, timeoutMs: number, curve?: CurveOptions): Push {
  // immediate: without a connected peer a send waits for its timeout instead of vanishing into a queue. (Not for a
  // socket that also receives: on a lost connection libzmq would drop what had arrived.)
  const socket = new Push({ ...common, ...sending(timeoutMs), immediate: true, ...curve });
  socket.connect(endpoint);
  return socket;
}

/** Answers whether a key is allowed, for all sockets of its context that say `zapDomain`. */
export interface Authenticator {
  readonly context: Context;
  /** Until close. @param isAllowed of a client's public key, 32 bytes; others are judged while one waits */
  run(isAllowed: (publicKey: Buffer) => Promise<boolean>): Promise<void>;
  close(): void;
}

/** The handler that libzmq asks (RFC 27), in a context of its own: a context has one. */
export async function openAuthenticator(): Promise<Authenticator> {
  const context = new Context();
  const socket = new Router({ context, linger: 0, sendTimeout: sendTimeoutMs, receiveTimeout: -1 });
  await socket.bind('inproc://zeromq.zap.01');
  let sends: Promise<void> = Promise.resolve();
  const answer = async (frames: readonly Buffer[], isAllowed: (key: Buffer) => Promise<boolean>): Promise<void> => {
    // peer, empty, version, request id, domain, address, identity, mechanism, credentials
    const [peer = '', empty = '', version = '', id = '', , , , mechanism, key] = frames;
    const isGood = mechanism?.toString() === 'CURVE' && key?.length === 32 && (await isAllowed(key));
    const reply = [peer, empty, version, id, isGood ? '200' : '400', isGood ? 'OK' : 'key not allowed', '', ''];
    // One after another; after close nobody waits for it.
    sends = sends.then(() => (socket.closed ? undefined : socket.send(reply))).catch(() => undefined);
  };
  return {
    context,
    close: () => socket.close(),
    async run(isAllowed) {
      while (!socket.closed) {
        const frames = await receiveWithin(socket, -1);
        if (frames === null) return;
        void answer(frames, isAllowed);
      }
    },
  };
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

/** null: the peer has completed the handshake. */
function connectSocket(
  socket: Dealer,
  endpoint: string,
  timeoutMs: number,
  hasKeys: boolean,
): Promise<NoConnection | null> {
  return new Promise((resolve) => {
    const timer = timeoutMs === Infinity ? undefined : setTimeout(() => resolve('late'), timeoutMs);
    const settle = (result: NoConnection | null): void => {
      clearTimeout(timer);
      resolve(result);
    };
    socket.events.on('handshake', () => settle(null));
    socket.events.on('handshake:error:auth', () => settle('wrong key'));
    socket.events.on('handshake:error:protocol', () => settle('keys on one side only'));
    // Who cannot read what was encrypted for another hangs up; so does a coordinator that is just stopping, once.
    let hungUp = 0;
    socket.events.on('handshake:error:other', () => {
      if (hasKeys && ++hungUp === patientHandshakes) settle('keys on one side only');
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
