/** The same llama model as a Hugging Face folder and as a GGUF file, whose q and k rows are permuted as llama.cpp does. */
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { toFloat32 } from '../../../model/dequantize.ts';
import { openCheckpoint } from '../../../model/open.ts';
import type { LayerRole, ModelRole, Weight } from '../../../model/checkpoint.ts';
import { floatsOf, golden, temporaryFolder } from './fixtures.ts';
import { writeGguf, type TestTensor, type Value } from './write-gguf.ts';

const folder = temporaryFolder();
const hub = join(golden, 'tiny', 'llama-attention-bias');
const headDim = 16;
const sizes = { hidden: 64, feedForward: 144, vocab: 288, heads: 4, kvHeads: 2 };

const layerNames: [string, string, number][] = [
  ['input_layernorm.weight', 'attn_norm.weight', sizes.hidden],
  ['self_attn.q_proj.weight', 'attn_q.weight', sizes.hidden],
  ['self_attn.q_proj.bias', 'attn_q.bias', sizes.heads * headDim],
  ['self_attn.k_proj.weight', 'attn_k.weight', sizes.hidden],
  ['self_attn.k_proj.bias', 'attn_k.bias', sizes.kvHeads * headDim],
  ['self_attn.v_proj.weight', 'attn_v.weight', sizes.hidden],
  ['self_attn.v_proj.bias', 'attn_v.bias', sizes.kvHeads * headDim],
  ['self_attn.o_proj.weight', 'attn_output.weight', sizes.heads * headDim],
  ['self_attn.o_proj.bias', 'attn_output.bias', sizes.hidden],
  ['post_attention_layernorm.weight', 'ffn_norm.weight', sizes.hidden],
  ['mlp.gate_proj.weight', 'ffn_gate.weight', sizes.hidden],
  ['mlp.up_proj.weight', 'ffn_up.weight', sizes.hidden],
  ['mlp.down_proj.weight', 'ffn_down.weight', sizes.feedForward],
];

const metadata: Record<string, Value> = {
  'general.architecture': { string: 'llama' },
  'llama.context_length': { u32: 512 },
  'llama.embedding_length': { u32: sizes.hidden },
  'llama.block_count': { u32: 2 },
  'llama.feed_forward_length': { u32: sizes.feedForward },
  'llama.attention.head_count': { u32: sizes.heads },
  'llama.attention.head_count_kv': { u32: sizes.kvHeads },
  'llama.attention.layer_norm_rms_epsilon': { f32: 1e-5 },
  'llama.rope.freq_base': { f32: 10000 },
  'llama.rope.dimension_count': { u32: headDim },
};

let tensors: TestTensor[] = [];
beforeAll(async () => {
  const floats = await floatsOf(join(hub, 'model.safetensors'));
  const tensor = (name: string, values: Float32Array, cols: number): TestTensor => ({
    name,
    ne: values.length === cols ? [cols] : [cols, values.length / cols],
    typeNumber: 0,
    bytes: new Uint8Array(values.buffer),
  });
  tensors = [
    tensor('token_embd.weight', floats.get('model.embed_tokens.weight')!, sizes.hidden),
    tensor('output_norm.weight', floats.get('model.norm.weight')!, sizes.hidden),
    tensor('output.weight', floats.get('lm_head.weight')!, sizes.hidden),
  ];
  for (let layer = 0; layer < 2; layer++)
    for (const [hubName, ggufName, cols] of layerNames) {
      const values = floats.get(`model.layers.${layer}.${hubName}`)!;
      const isRotated = /[qk]_proj/.test(hubName);
      const rowLength = hubName.endsWith('.bias') ? 1 : cols;
      tensors.push(tensor(`blk.${layer}.${ggufName}`, isRotated ? permute(values, rowLength) : values, cols));
    }
});

/** As llama.cpp's converter: reshape [heads, 2, headDim/2, cols], swap the two middle axes. */
function permute(values: Float32Array, cols: number): Float32Array {
  const out = new Float32Array(values.length);
  const half = headDim / 2;
  for (let row = 0; row < values.length / cols; row++) {
    const head = Math.floor(row / headDim);
    const [part, i] = [Math.floor((row % headDim) / half), row % half];
    out.set(values.subarray(row * cols, (row + 1) * cols), (head * headDim + i * 2 + part) * cols);
  }
  return out;
}

/** Comparing bytes with toEqual takes a second a megabyte. */
function expectSame(actual: Weight, expected: Weight): void {
  expect({ ...actual, bytes: undefined }).toEqual({ ...expected, bytes: undefined });
  expect(Buffer.compare(actual.bytes, expected.bytes)).toBe(0);
}

describe('llama', () => {
  it('is the same model in both formats, for any range', async () => {
    const path = join(folder(), 'model.gguf');
    await writeGguf(path, metadata, tensors);
    await using gguf = await openCheckpoint(path);
    await using original = await openCheckpoint(hub);
    expect(gguf.format).toBe('gguf');
    expect({ ...gguf.config, normEps: 0 }).toEqual({ ...original.config, normEps: 0 });
    expect(gguf.config.normEps).toBeCloseTo(1e-5, 10);
    const modelRoles: ModelRole[] = ['embedding', 'head', 'finalNorm'];
    for (const role of modelRoles) expectSame(await gguf.read(role), await original.read(role));
    const roles: LayerRole[] = [
      'attentionNorm',
      'query',
      'queryBias',
      'key',
      'keyBias',
      'value',
      'valueBias',
      'output',
      'outputBias',
      'feedForwardNorm',
      'gate',
      'up',
      'down',
    ];
    for (const role of roles) expectSame(await gguf.read(role, 1), await original.read(role, 1));
    const ranges = [
      { start: 0, end: 16 },
      { start: 5, end: 29 },
      { start: 31, end: 32 },
      { start: 7, end: 7 },
    ];
    for (const range of ranges) {
      const cols = { start: 3, end: 40 };
      for (const role of ['query', 'key'] as const)
        expectSame(await gguf.read(role, 0, range, cols), await original.read(role, 0, range, cols));
      const bias = { start: 0, end: 1 };
      expectSame(await gguf.read('keyBias', 0, bias, range), await original.read('keyBias', 0, bias, range));
    }
  });

  it('divides frequencies by rope_freqs.weight', async () => {
    const path = join(folder(), 'divisors.gguf');
    const divisors = Float32Array.from({ length: headDim / 2 }, (_, i) => 1 + i / 4);
    const extra = {
      name: 'rope_freqs.weight',
      ne: [headDim / 2],
      typeNumber: 0,
      bytes: new Uint8Array(divisors.buffer),
    };
    await writeGguf(path, metadata, [...tensors, extra]);
    await using gguf = await openCheckpoint(path);
    await using original = await openCheckpoint(hub);
    expect(gguf.config.rope.frequencies).toEqual(
      original.config.rope.frequencies.map((frequency, i) => frequency / divisors[i]!),
    );
  });

  it.each([
    [{ 'llama.rope.scaling.type': { string: 'linear' }, 'llama.rope.scaling.factor': { f32: 4 } }, 1],
    [
      {
        'llama.rope.scaling.type': { string: 'yarn' },
        'llama.rope.scaling.factor': { f32: 4 },
        'llama.rope.scaling.original_context_length': { u32: 128 },
      },
      1.138629436111989,
    ],
  ] satisfies [Record<string, Value>, number][])('reads scaling %j', async (scaling, attentionFactor) => {
    const path = join(folder(), `scaling-${attentionFactor}.gguf`);
    await writeGguf(path, { ...metadata, ...scaling }, tensors);
    await using gguf = await openCheckpoint(path);
    expect(gguf.config.rope.attentionFactor).toBeCloseTo(attentionFactor, 12);
    expect(gguf.config.rope.frequencies.at(-1)).toBeCloseTo(10000 ** (-14 / 16) / 4, 12);
  });

  it('output.weight absent: tied', async () => {
    const path = join(folder(), 'tied.gguf');
    await writeGguf(
      path,
      metadata,
      tensors.filter(({ name }) => name !== 'output.weight'),
    );
    await using gguf = await openCheckpoint(path);
    expect(gguf.config.tiedEmbeddings).toBe(true);
  });

  it.each([
    [
      { 'general.architecture': { string: 'rwkv6' } },
      /general\.architecture 'rwkv6' is not supported; known: llama, qwen2, qwen3, qwen3moe, gemma2, deepseek2$/,
    ],
    [{ 'llama.expert_count': { u32: 8 } }, /^metadata llama\.expert_used_count is missing; expected 1 to 8$/],
    [
      { 'llama.attention.head_count': { u32: 5 } },
      /^metadata llama: 5 query heads cannot share 2 KV heads; expected a divisor$/,
    ],
    [
      { 'llama.rope.dimension_count': { u32: 8 } },
      /^metadata llama\.rope\.dimension_count: 8 of 16 head dimensions rotate; only whole heads are supported$/,
    ],
    [
      { 'llama.rope.scaling.type': { string: 'longrope' }, 'llama.rope.scaling.factor': { f32: 2 } },
      /'longrope' is not supported; none, linear and yarn are$/,
    ],
  ] satisfies [Record<string, Value>, RegExp][])('refuses %j', async (change, message) => {
    const path = join(folder(), 'refused.gguf');
    await writeGguf(path, { ...metadata, ...change }, tensors);
    await expect(openCheckpoint(path)).rejects.toThrow(message);
  });

  it('names a wrong type', async () => {
    const path = join(folder(), 'type.gguf');
    const changed = tensors.map((tensor) =>
      tensor.name === 'blk.1.ffn_norm.weight' ? { ...tensor, typeNumber: 26 } : tensor,
    );
    await writeGguf(path, metadata, changed);
    await expect(openCheckpoint(path)).rejects.toThrow(
      'weights: layers.1 feedForwardNorm is stored as i32, which cannot be computed with (tensor blk.1.ffn_norm.weight)',
    );
  });

  it('cuts quantised columns at blocks', async () => {
    const path = join(folder(), 'blocks.gguf');
    const blocks = new Uint8Array(sizes.hidden * (144 / 16) * 34).map((_, i) => (i * 37 + (i >> 5)) % 119);
    const quantised = {
      name: 'blk.0.ffn_gate.weight',
      ne: [sizes.hidden, sizes.feedForward],
      typeNumber: 8,
      bytes: blocks.slice(0, 144 * 2 * 34),
    };
    await writeGguf(
      path,
      metadata,
      tensors.map((tensor) => (tensor.name === quantised.name ? quantised : tensor)),
    );
    await using gguf = await openCheckpoint(path);
    const whole = toFloat32(await gguf.read('gate', 0)); // [144, 64]
    const part = await gguf.read('gate', 0, { start: 10, end: 13 }, { start: 32, end: 64 });
    expect(part).toMatchObject({ rows: 3, cols: 32, type: 'q8_0' });
    expect(toFloat32(part)).toEqual(
      Float32Array.from({ length: 96 }, (_, i) => whole[(10 + Math.floor(i / 32)) * 64 + 32 + (i % 32)]!),
    );
    await expect(gguf.read('gate', 0, { start: 0, end: 1 }, { start: 16, end: 48 })).rejects.toThrow(
      'weights: columns of layers.0 gate: 16..48 is not a range of 64 in blocks of 32',
    );
  });
});
