/** Weights that are not stored as they are used: 8-bit floats with block scales, experts one by one, gains minus 1. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { toFloat32 } from '../../../model/dequantize.ts';
import { floatOfFp8 } from '../../../model/fp8.ts';
import { openCheckpoint } from '../../../model/open.ts';
import { expectClose } from '../../helpers/expect-close.ts';
import { seededRandom } from '../../helpers/random.ts';
import { EXACT } from '../../helpers/tolerances.ts';
import { floatsOf, golden, temporaryFolder } from './fixtures.ts';

const folder = temporaryFolder();

describe('E4M3', () => {
  it.each([
    [0x00, 0],
    [0x01, 2 ** -9],
    [0x07, 7 * 2 ** -9],
    [0x08, 2 ** -6],
    [0x38, 1],
    [0x3c, 1.5],
    [0x7e, 448],
    [0xfe, -448],
    [0xb8, -1],
  ])('code %i is %f', (code, value) => {
    expect(floatOfFp8(code)).toBe(value);
  });

  it('has two NaNs and no infinity', () => {
    const values = Array.from({ length: 256 }, (_, code) => floatOfFp8(code));
    expect(values.filter(Number.isNaN).length).toBe(2);
    expect(values.every((value) => Number.isNaN(value) || Number.isFinite(value))).toBe(true);
  });
});

describe('8-bit floats with scales', () => {
  const sizes = { hidden: 20, dim: 14, vocab: 9 };
  const block = [4, 8] as const;

  it('are each times the scale of their block, for any range', async () => {
    const { path, values } = await writeModel();
    await using checkpoint = await openCheckpoint(path);
    expect(checkpoint.shapeOf('gate', 0)).toEqual({ rows: sizes.dim, cols: sizes.hidden, type: 'f32', fp8: true });
    for (const [rows, cols] of [
      [
        { start: 0, end: 14 },
        { start: 0, end: 20 },
      ],
      [
        { start: 3, end: 9 },
        { start: 7, end: 17 },
      ],
    ] as const) {
      const expected: number[] = [];
      for (let row = rows.start; row < rows.end; row++)
        for (let col = cols.start; col < cols.end; col++) expected.push(values[row * sizes.hidden + col]!);
      expectClose(toFloat32(await checkpoint.read('gate', 0, rows, cols)), expected, EXACT);
    }
  });

  it('refuses scales of another shape', async () => {
    const { path } = await writeModel([3, 3]);
    await expect(openCheckpoint(path)).rejects.toThrow(
      'weights: layers.0 gate: the scales model.layers.0.mlp.gate_proj.weight_scale_inv are f32 [3, 3], expected f32 [4, 3] for blocks of 4 x 8',
    );
  });

  /** A llama layer whose gate is quantised. @returns the gate's values [dim, hidden] */
  async function writeModel(scaleShape: readonly number[] = [4, 3]) {
    const path = join(folder(), `fp8-${scaleShape.join('x')}`);
    await mkdir(path);
    const next = seededRandom(5);
    const { hidden, dim, vocab } = sizes;
    const codes = Uint8Array.from({ length: dim * hidden }, () => Math.floor(next() * 126));
    const scales = Float32Array.from({ length: scaleShape[0]! * scaleShape[1]! }, () => 0.5 + next());
    const values = Float32Array.from(codes, (code, i) => {
      const [row, col] = [Math.floor(i / hidden), i % hidden];
      return floatOfFp8(code) * scales[Math.floor(row / block[0]) * 3 + Math.floor(col / block[1])]!;
    });
    const layer = 'model.layers.0.';
    const plain: [string, number[]][] = [
      ['model.embed_tokens.weight', [vocab, hidden]],
      ['lm_head.weight', [vocab, hidden]],
      ['model.norm.weight', [hidden]],
      [`${layer}input_layernorm.weight`, [hidden]],
      [`${layer}post_attention_layernorm.weight`, [hidden]],
      ...['q', 'k', 'v', 'o'].map((p): [string, number[]] => [`${layer}self_attn.${p}_proj.weight`, [hidden, hidden]]),
      [`${layer}mlp.up_proj.weight`, [dim, hidden]],
      [`${layer}mlp.down_proj.weight`, [hidden, dim]],
    ];
    const count = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
    const tensors: { name: string; dtype: string; shape: readonly number[]; bytes: Uint8Array }[] = [
      ...plain.map(([name, shape]) => ({ name, dtype: 'F32', shape, bytes: new Uint8Array(count(shape) * 4) })),
      {
        name: `${layer}mlp.gate_proj.weight_scale_inv`,
        dtype: 'F32',
        shape: scaleShape,
        bytes: new Uint8Array(scales.buffer),
      },
      { name: `${layer}mlp.gate_proj.weight`, dtype: 'F8_E4M3', shape: [dim, hidden], bytes: codes },
    ];
    const header: Record<string, unknown> = {};
    let offset = 0;
    for (const { name, dtype, shape, bytes } of tensors) {
      header[name] = { dtype, shape, data_offsets: [offset, offset + bytes.length] };
      offset += bytes.length;
    }
    const text = Buffer.from(JSON.stringify(header));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(text.length));
    await writeFile(
      join(path, 'model.safetensors'),
      Buffer.concat([length, text, ...tensors.map(({ bytes }) => bytes)]),
    );
    await writeFile(
      join(path, 'config.json'),
      JSON.stringify({
        model_type: 'llama',
        hidden_size: hidden,
        intermediate_size: dim,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        vocab_size: vocab,
        max_position_embeddings: 64,
        quantization_config: { quant_method: 'fp8', weight_block_size: block },
      }),
    );
    return { path, values };
  }
});

describe('stacked experts', () => {
  it('lie one below the other, whatever rows are asked for', async () => {
    const path = join(golden, 'tiny', 'qwen3-moe');
    await using checkpoint = await openCheckpoint(path);
    const floats = await floatsOf(join(path, 'model.safetensors'));
    expect(checkpoint.shapeOf('expertDown', 1)).toEqual({ rows: 8 * 64, cols: 48, type: 'f32' });
    const rows = { start: 2 * 64 + 60, end: 4 * 64 + 3 };
    const actual = toFloat32(await checkpoint.read('expertDown', 1, rows, { start: 10, end: 30 }));
    const expected: number[] = [];
    for (let row = rows.start; row < rows.end; row++) {
      const expert = floats.get(`model.layers.1.mlp.experts.${Math.floor(row / 64)}.down_proj.weight`)!;
      expected.push(...expert.subarray((row % 64) * 48 + 10, (row % 64) * 48 + 30));
    }
    expectClose(actual, expected, EXACT);
  });
});

describe('gains stored minus 1', () => {
  it('come out as they multiply', async () => {
    const path = join(golden, 'tiny', 'gemma2');
    await using checkpoint = await openCheckpoint(path);
    const stored = (await floatsOf(join(path, 'model.safetensors'))).get(
      'model.layers.1.post_feedforward_layernorm.weight',
    )!;
    const gains = toFloat32(await checkpoint.read('feedForwardPostNorm', 1));
    expectClose(
      gains,
      Float32Array.from(stored, (gain) => 1 + gain),
      EXACT,
    );
  });
});
