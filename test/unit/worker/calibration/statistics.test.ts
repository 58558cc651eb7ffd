/** The statistics of a calibration against their definition in plain float64 loops, on both backends of every machine. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { ExactTokens } from '../../../../config/shard-plan.ts';
import { splitStatistics, type StatisticsField } from '../../../../collective/statistics.ts';
import { joinSegments } from '../../../../collective/window-sums.ts';
import type { Checkpoint, LayerRole } from '../../../../model/checkpoint.ts';
import { toFloat32 } from '../../../../model/dequantize.ts';
import { openCheckpoint } from '../../../../model/open.ts';
import { openBackend } from '../../../../worker/backend.ts';
import { CalibrationSession } from '../../../../worker/calibration/calibration-session.ts';
import { goldenFolder } from '../../../helpers/golden.ts';
import { random } from '../../model/transmla/random-layer.ts';

type Fields = Record<StatisticsField, Float64Array>;

const tokens = 19;

function windowsOf(vocabSize: number, count: number): number[][] {
  const next = random(5);
  return Array.from({ length: count }, () =>
    Array.from({ length: tokens }, () => Math.floor((next() + 0.5) * vocabSize)),
  );
}

describe.each([
  ['llama-odd-heads'],
  ['llama-attention-bias'],
  ['llama-yarn'],
  ['gemma2'],
  ['mistral'],
  ['mixtral'],
  ['llama-odd-heads', { sinks: 2, window: 5 }],
  ['gemma2', { sinks: 0, window: 3 }],
] as [string, ExactTokens?][])('%s, near tokens %o', (name, near) => {
  it.each(['reference', 'ggml'] as const)('equals the definition on %s', async (backendName) => {
    await using checkpoint = await openCheckpoint(join(goldenFolder, 'tiny', name));
    const backend = await openBackend({ backend: backendName, device: '', threads: 1 });
    const windows = windowsOf(checkpoint.config.vocabSize, 2);
    using session = await CalibrationSession.begin(checkpoint, backend, {
      windows,
      worldSize: 1,
      rank: 0,
      refits: false,
      near,
    });
    const attention = checkpoint.config.attention;
    if (attention.kind !== 'gqa') throw new Error('expected GQA');
    const shape = { ...checkpoint.config, headDim: attention.headDim, numKvHeads: attention.numKvHeads };
    const streams = await Promise.all(windows.map((window) => embedded(checkpoint, window)));
    for (let layer = 0; layer < checkpoint.config.numLayers; layer++) {
      const actual = splitStatistics(joinSegments([await session.statistics(layer)], windows.length), shape);
      const expected = await definition(checkpoint, layer, streams, near);
      for (const field of Object.keys(expected) as StatisticsField[]) {
        const size = Math.max(...expected[field].map(Math.abs));
        let worst = 0;
        expected[field].forEach((value, i) => (worst = Math.max(worst, Math.abs(value - actual[field][i]!))));
        // The feed-forward part of ggml is 8-bit where its sizes allow, which moves the second layer's input.
        expect(worst / size, `layer ${layer}, ${field}`).toBeLessThan(layer === 0 ? 1e-4 : 2e-2);
      }
    }
  });
});

async function floats(checkpoint: Checkpoint, role: LayerRole, layer: number, size: number): Promise<Float32Array> {
  return checkpoint.shapeOf(role, layer) === undefined
    ? new Float32Array(size)
    : toFloat32(await checkpoint.read(role, layer));
}

async function embedded(checkpoint: Checkpoint, window: number[]): Promise<Float64Array[]> {
  const table = toFloat32(await checkpoint.read('embedding'));
  const { hiddenDim: hidden, embeddingScale } = checkpoint.config;
  return window.map((token) =>
    Float64Array.from(table.subarray(token * hidden, (token + 1) * hidden), (value) => value * embeddingScale),
  );
}

/** Also takes the streams [windows][T][D] through the layer. */
async function definition(
  checkpoint: Checkpoint,
  layer: number,
  streams: Float64Array[][],
  near: ExactTokens = { sinks: 0, window: 0 },
): Promise<Fields> {
  const { attention, hiddenDim: D, numHeads: H, rope, normEps, postNorms, slidingWindows } = checkpoint.config;
  if (attention.kind !== 'gqa') throw new Error('expected GQA');
  const { headDim: d, numKvHeads: G, scoreScale, scoreSoftcap: cap } = attention;
  const sliding = slidingWindows[layer] || Infinity;
  const w = Object.fromEntries(
    await Promise.all(
      (
        [
          ['attentionNorm', D],
          ['query', 0],
          ['queryBias', H * d],
          ['key', 0],
          ['keyBias', G * d],
          ['value', 0],
          ['valueBias', G * d],
          ['output', 0],
          ['outputBias', D],
          ['feedForwardNorm', D],
          ['attentionPostNorm', D],
          ['feedForwardPostNorm', D],
        ] as [LayerRole, number][]
      ).map(async ([role, size]) => [role, await floats(checkpoint, role, layer, size)] as const),
    ),
  ) as Record<LayerRole, Float32Array>;
  const fields: Fields = {
    keyMoment: new Float64Array((G * d + 1) ** 2),
    valueMoment: new Float64Array((2 * G * d + 1) ** 2),
    plainMoment: new Float64Array((2 * G * d + 1) ** 2),
    queryMoments: new Float64Array(H * d * d),
    scoreWeights: new Float64Array(H),
    probabilityWeights: new Float64Array(H),
    phaseCos: new Float64Array((H * d) / 2),
    phaseSin: new Float64Array((H * d) / 2),
  };
  for (const stream of streams) {
    const h = stream.map((x) => norm(x, w.attentionNorm, normEps));
    const q = h.map((x) => affine(w.query, w.queryBias, x));
    const k = h.map((x) => affine(w.key, w.keyBias, x));
    const v = h.map((x) => affine(w.value, w.valueBias, x));
    const omega = new Float64Array(stream.length);
    const nu = new Float64Array(stream.length);
    const heads = stream.map(() => new Float64Array(H * d));
    for (let head = 0; head < H; head++) {
      const g = Math.floor((head * G) / H);
      const part = (x: Float64Array, i: number) => x.subarray(i * d, (i + 1) * d);
      let gram = 0;
      for (let row = 0; row < D; row++) for (let i = 0; i < d; i++) gram += w.output[row * H * d + head * d + i]! ** 2;
      for (let m = 0; m < stream.length; m++) {
        const scores = Array.from({ length: m + 1 }, (_, t) => {
          if (m - t >= sliding) return -Infinity;
          const [a, b] = [turn(part(q[m]!, head), m, rope), turn(part(k[t]!, g), t, rope)];
          const score = a.reduce((sum, value, i) => sum + value * b[i]!, 0) * scoreScale;
          return cap === 0 ? score : cap * Math.tanh(score / cap);
        });
        const p = softmax(scores);
        const o = heads[m]!.subarray(head * d, (head + 1) * d);
        p.forEach((weight, t) => part(v[t]!, g).forEach((value, i) => (o[i]! += weight * value)));
        p.forEach((weight, t) => {
          if (t < near.sinks || t > m - near.window) return;
          let moved = 0;
          for (let row = 0; row < D; row++) {
            let sum = 0;
            for (let i = 0; i < d; i++) sum += w.output[row * H * d + head * d + i]! * (part(v[t]!, g)[i]! - o[i]!);
            moved += sum * sum;
          }
          const slope = cap === 0 || weight === 0 ? 1 : 1 - (scores[t]! / cap) ** 2;
          const pair = weight ** 2 * moved * (scoreScale * slope) ** 2;
          omega[t]! += pair;
          nu[t]! += (weight ** 2 * gram) / d;
          fields.scoreWeights[head]! += pair;
          fields.probabilityWeights[head]! += weight ** 2;
          rope.frequencies.forEach((frequency, l) => {
            fields.phaseCos[(head * d) / 2 + l]! += pair * Math.cos(frequency * (m - t));
            fields.phaseSin[(head * d) / 2 + l]! += pair * Math.sin(frequency * (m - t));
          });
          addOuter(fields.queryMoments.subarray(head * d * d, (head + 1) * d * d), part(q[m]!, head), pair);
        });
      }
    }
    h.forEach((_, t) => {
      const augmented = Float64Array.of(...k[t]!, ...v[t]!, 1);
      addOuter(fields.keyMoment, Float64Array.of(...k[t]!, 1), omega[t]!);
      addOuter(fields.valueMoment, augmented, nu[t]!);
      addOuter(fields.plainMoment, augmented, 1);
    });
    const expert = await feedForwardOf(checkpoint, layer);
    stream.forEach((x, t) => {
      const behind = (delta: Float64Array, gain: Float32Array) => (postNorms ? norm(delta, gain, normEps) : delta);
      add(x, behind(affine(w.output, w.outputBias, heads[t]!), w.attentionPostNorm));
      add(x, behind(expert(norm(x, w.feedForwardNorm, normEps)), w.feedForwardPostNorm));
    });
  }
  return fields;
}

/** The layer's feed-forward part, dense or routed by softmax with renormalised shares. */
async function feedForwardOf(checkpoint: Checkpoint, layer: number): Promise<(y: Float64Array) => Float64Array> {
  const { experts, feedForward, hiddenDim: D } = checkpoint.config;
  const roles = (experts ? ['expertGate', 'expertUp', 'expertDown'] : ['gate', 'up', 'down']) as LayerRole[];
  const [gate, up, down] = await Promise.all(roles.map((role) => floats(checkpoint, role, layer, 0)));
  const router = experts ? await floats(checkpoint, 'router', layer, 0) : undefined;
  const act = (a: number) =>
    feedForward.activation === 'silu'
      ? a / (1 + Math.exp(-a))
      : 0.5 * a * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (a + 0.044715 * a ** 3)));
  const F = experts?.dim ?? feedForward.dim;
  const one = (y: Float64Array, e: number) => {
    const rows = (weight: Float32Array) => weight.subarray(e * F * D, (e + 1) * F * D);
    const [a, b] = [affine(rows(gate!), new Float32Array(F), y), affine(rows(up!), new Float32Array(F), y)];
    return affine(
      rows(down!),
      new Float32Array(D),
      a.map((value, i) => act(value) * b[i]!),
    );
  };
  return (y) => {
    if (!experts || !router) return one(y, 0);
    const logits = [...affine(router, new Float32Array(experts.count), y)];
    const order = logits.map((_, e) => e).sort((a, b) => logits[b]! - logits[a]!);
    const chosen = order.slice(0, experts.perToken);
    const shares = softmax(chosen.map((e) => logits[e]!));
    const out = new Float64Array(D);
    chosen.forEach((e, i) =>
      add(
        out,
        one(y, e).map((value) => value * shares[i]!),
      ),
    );
    return out;
  };
}

function norm(x: Float64Array, gain: Float32Array, eps: number): Float64Array {
  const scale = 1 / Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + eps);
  return x.map((value, i) => value * scale * gain[i]!);
}

function affine(weight: Float32Array, bias: Float32Array, x: Float64Array): Float64Array {
  return Float64Array.from({ length: weight.length / x.length }, (_, row) =>
    x.reduce((sum, value, i) => sum + value * weight[row * x.length + i]!, bias[row]!),
  );
}

function turn(x: Float64Array, position: number, rope: { frequencies: readonly number[]; attentionFactor: number }) {
  const half = x.length / 2;
  return x.map((value, i) => {
    const angle = position * rope.frequencies[i % half]!;
    const other = i < half ? -x[i + half]! : x[i - half]!;
    return (value * Math.cos(angle) + other * Math.sin(angle)) * rope.attentionFactor;
  });
}

function softmax(scores: number[]): number[] {
  const weights = scores.map(Math.exp);
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}

function addOuter(sum: Float64Array, x: Float64Array, weight: number): void {
  x.forEach((a, i) => x.forEach((b, j) => (sum[i * x.length + j]! += weight * a * b)));
}

function add(x: Float64Array, y: Float64Array): void {
  y.forEach((value, i) => (x[i]! += value));
}
