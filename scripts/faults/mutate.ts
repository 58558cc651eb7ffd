/**
 * Frames as a hostile or broken peer might send them: real ones with bytes changed, and whole messages with fields
 * changed, which reach deeper. Seeded: the same on every machine. Read next: fuzz-frames.ts, connections.ts.
 */
import { encodeCollective, encodeMessage, operations } from '../../collective/frame.ts';
import { type FromRank, protocolVersion, type ToRank } from '../../collective/messages.ts';

export type Random = () => number;

/** One of every message that crosses the control plane. */
export function sampleMessages(): readonly (ToRank | FromRank)[] {
  const greeting = { pid: 7, host: 'host', protocol: protocolVersion, version: '0.1.0', token: 'a'.repeat(32) };
  const ring = { ringEndpoint: 'tcp://192.0.2.1:5555', ringKey: '' };
  const timings = { computeMs: 3.5, waitMs: 0.25, bytesSent: 4608, bytesReceived: 4608 };
  const range = { start: 0, end: 4 };
  const shard = {
    heads: range,
    prefillHeads: range,
    kvHeads: range,
    latent: range,
    sharedLatent: { start: 0, end: 0 },
    ropeKey: range,
    feedForward: range,
    experts: range,
    expertColumns: range,
    sharedColumns: range,
    vocab: range,
    positions: { part: 0, parts: 1, block: 0 },
  };
  const ranks = [0, 1].map((rank) => ({ rank, ...shard }));
  const exactTokens = { sinks: 4, window: 64 };
  const plan = {
    scheme: 'tpla',
    worldSize: 2,
    latentGroups: 2,
    exactTokens,
    expertSharding: 'columns',
    ranks,
  } as const;
  return [
    { kind: 'hello', rank: 1, ...greeting, ...ring },
    { kind: 'offer', rank: null, worldSize: 3, modelIdentity: 'b'.repeat(64), ...greeting, ...ring },
    {
      kind: 'ready',
      rank: 1,
      epoch: 2,
      loadMs: 12.5,
      weightBytes: 1 << 27,
      cacheBytesPerToken: 7200,
      cacheBytes: 7200 * 8192,
      device: 'cpu',
      transport: 'zeromq',
      rssBytes: 1 << 28,
    },
    { kind: 'reply', rank: 2, id: 900, ...timings, rssBytes: 1 << 28, peakRssBytes: 1 << 28, latenciesUs: [1.5, 2, 9] },
    { kind: 'failed', rank: 0, epoch: 1, id: null, error: 'PeerError', message: 'rank 0: nothing from rank 1' },
    {
      kind: 'setup',
      rank: 1,
      worldSize: 3,
      epoch: 0,
      modelPath: '/srv/model',
      modelIdentity: 'c'.repeat(64),
      plan,
      options: {
        backend: 'ggml',
        device: '',
        threads: 1,
        transport: 'auto',
        weights: 'keep',
        cacheType: 'f16',
        contextTokens: 2048,
        slots: 4,
        maxStepTokens: 512,
        reparameterization: 'weighted',
        corrections: '',
        prefill: 'exact',
        norm: 'exact',
        timeoutMs: 10_000,
        payload: 'f32',
      },
      ringEndpoints: ['ipc:///a', 'ipc:///b', 'ipc:///c'],
      ringKeys: ['', '', ''],
      hosts: ['a', 'a', 'b'],
      runId: 'abcdef',
      chaos: false,
    },
    {
      kind: 'step',
      id: 4,
      phase: 'decode',
      sequences: [{ slot: 0, start: 9, tokens: [1, 300, 70_000] }],
      want: { kind: 'last' },
    },
    { kind: 'step', id: 5, phase: 'prefill', sequences: [], want: { kind: 'score', targets: [-1, 4] } },
    { kind: 'moments', id: 6, action: 'read', layer: 3 },
    {
      kind: 'calibration',
      id: 7,
      action: 'begin',
      windows: [
        [1, 2],
        [3, 4],
      ],
      refits: true,
    },
    { kind: 'collectiveCheck', id: 8, floats: 576, count: 100 },
    { kind: 'computeCheck', id: 9 },
    { kind: 'linkCheck', id: 10, from: 0, to: 1, floats: 64, count: 20 },
    { kind: 'echo', id: 11 },
    { kind: 'probe' },
    { kind: 'loading', rank: 1, epoch: 0, layers: 3 },
    { kind: 'rejoin', epoch: 3, ringEndpoints: ['ipc:///a'], ringKeys: [''], hosts: ['a'] },
    { kind: 'chaos', action: 'slow', peer: 1, ms: 500 },
    { kind: 'refused', reason: 'no rank is free' },
    { kind: 'stop' },
  ];
}

/** Frames of a control message: a whole message with some fields changed, or its bytes changed, or both. */
export function mutatedMessage(messages: readonly object[], random: Random): Buffer[] {
  const message = structuredClone(pick(messages, random));
  const payload = random() < 0.2 ? Float32Array.from({ length: Math.floor(random() * 40) }, () => random()) : undefined;
  if (random() < 0.5) for (let i = 0; i <= random() * 3; i++) changeField(message, random);
  const [packed = Buffer.alloc(0), raw] = encodeMessage(message, payload);
  const frames = [random() < 0.7 ? mutatedBytes(packed, random) : packed];
  if (raw !== undefined) frames.push(random() < 0.5 ? mutatedBytes(raw, random) : raw);
  if (random() < 0.02) frames.push(Buffer.from('more'));
  return frames;
}

/** Bytes of a collective frame: damaged, or whole with a header of any values. */
export function mutatedCollective(random: Random): Buffer {
  const any = (bits: number): number => Math.floor(random() * 2 ** (random() < 0.5 ? 3 : bits));
  const header = {
    operation: pick(operations, random),
    groupTag: any(32),
    epoch: any(32),
    sequence: any(32),
    source: any(16),
    step: any(16),
    total: any(32),
    offset: any(32),
  };
  const frame = encodeCollective(
    header,
    Float32Array.from({ length: Math.floor(random() * 50) }, () => random() - 0.5),
  );
  return random() < 0.7 ? mutatedBytes(frame, random) : frame;
}

/** One to four changes: a bit, a byte, a cut, bytes put in, left out, or copied over others, a huge count. */
export function mutatedBytes(original: Buffer, random: Random): Buffer {
  let bytes = Buffer.from(original);
  for (let i = 0; i <= random() * 3; i++) {
    const at = Math.floor(random() * bytes.length);
    const length = Math.ceil(random() * 8);
    const noise = Buffer.from(Array.from({ length }, () => Math.floor(random() * 256)));
    switch (Math.floor(random() * 7)) {
      case 0:
        if (bytes.length > 0) bytes.writeUInt8(bytes.readUInt8(at) ^ (1 << Math.floor(random() * 8)), at);
        break;
      case 1:
        noise.copy(bytes, at);
        break;
      case 2:
        bytes = bytes.subarray(0, at);
        break;
      case 3:
        bytes = Buffer.concat([bytes.subarray(0, at), noise, bytes.subarray(at)]);
        break;
      case 4:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + length)]);
        break;
      case 5:
        bytes.copy(bytes, at, Math.floor(random() * bytes.length));
        break;
      default:
        // An array, map, string or binary of up to four billion.
        Buffer.from([pick([0xdd, 0xdf, 0xdb, 0xc6, 0xc9], random), 0xff, 0xff, 0xff, 0xff]).copy(bytes, at);
    }
  }
  return bytes;
}

const oddValues: readonly unknown[] = [
  null,
  true,
  -1,
  0,
  0.5,
  2 ** 31,
  2 ** 53,
  -(2 ** 40),
  NaN,
  Infinity,
  '',
  'x'.repeat(5000),
  '../../etc/passwd',
  '\0',
  '💥',
  [],
  {},
  [[[[]]]],
  { kind: 'stop' },
  JSON.parse('{"__proto__": {"polluted": 1}, "constructor": 1}'),
];

/** Replaces, removes or adds one value somewhere in the message. */
function changeField(message: object, random: Random): void {
  let target = message;
  for (;;) {
    const keys = Object.keys(target);
    const isNew = random() < 0.1 || keys.length === 0;
    const key = isNew ? pick(['extra', '__proto__', 'constructor', 'kind'], random) : pick(keys, random);
    const value: unknown = Object.hasOwn(target, key) ? Reflect.get(target, key) : undefined;
    if (typeof value === 'object' && value !== null && random() < 0.7) {
      target = value;
      continue;
    }
    if (random() < 0.2) return void Reflect.deleteProperty(target, key);
    const changed = {
      value: structuredClone(pick(oddValues, random)),
      enumerable: true,
      writable: true,
      configurable: true,
    };
    Object.defineProperty(target, key, changed);
    return;
  }
}

function pick<T>(values: readonly T[], random: Random): T {
  const value = values[Math.floor(random() * values.length)];
  if (value === undefined) throw new RangeError('nothing to choose from');
  return value;
}
