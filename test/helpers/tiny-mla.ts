/** A small random MLA checkpoint, as `tpla convert` writes them (model/families/converted.ts), with a rotation beside it. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { writeSafetensors, type TensorSource } from '../../model/safetensors.ts';
import { randomArray } from './random.ts';

export interface TinyMla {
  readonly heads: number;
  readonly latentDim: number;
  readonly ropeDim: number;
  readonly nopeDim: number;
  readonly valueDim: number;
  readonly bias: boolean;
}

export const tinyMla: TinyMla = { heads: 9, latentDim: 24, ropeDim: 8, nopeDim: 12, valueDim: 10, bias: true };

const hidden = 64;
const feedForward = 96;
const numLayers = 2;
export const tinyVocab = 97;

/** @returns the folder; disposing of it removes it */
export async function writeTinyMla(
  sizes: Partial<TinyMla> = {},
  seed = 1,
): Promise<AsyncDisposable & { path: string }> {
  const { heads, latentDim, ropeDim, nopeDim, valueDim, bias } = { ...tinyMla, ...sizes };
  const path = await mkdtemp(join(tmpdir(), 'tiny-mla-'));
  const tensors: TensorSource[] = [];
  const add = (name: string, shape: number[], scale: number, offset = 0): void => {
    const length = shape.reduce((product, size) => product * size, 1);
    const values = randomArray(seed * 1000 + tensors.length, length, offset - scale, offset + scale);
    tensors.push(f32(name, shape, values));
  };
  const matrix = (name: string, rows: number, cols: number, gain = 1): void =>
    add(name, [rows, cols], gain * Math.sqrt(3 / cols));
  matrix('model.embed_tokens.weight', tinyVocab, hidden, 8);
  matrix('lm_head.weight', tinyVocab, hidden, 2);
  add('model.norm.weight', [hidden], 0.2, 1);
  for (let layer = 0; layer < numLayers; layer++) {
    const at = (name: string): string => `model.layers.${layer}.${name}`;
    add(at('input_layernorm.weight'), [hidden], 0.2, 1);
    // Gains that make the scores differ by several units: attention that is neither flat nor one-hot.
    matrix(at('self_attn.q_proj.weight'), heads * (nopeDim + ropeDim), hidden, 2);
    matrix(at('self_attn.kv_a_proj_with_mqa.weight'), latentDim + ropeDim, hidden);
    matrix(at('self_attn.kv_b_proj.weight'), heads * (nopeDim + valueDim), latentDim);
    matrix(at('self_attn.o_proj.weight'), hidden, heads * valueDim);
    if (bias) {
      add(at('self_attn.q_proj.bias'), [heads * (nopeDim + ropeDim)], 0.3);
      add(at('self_attn.kv_a_proj_with_mqa.bias'), [latentDim + ropeDim], 0.3);
      add(at('self_attn.o_proj.bias'), [hidden], 0.3);
    }
    add(at('post_attention_layernorm.weight'), [hidden], 0.2, 1);
    matrix(at('mlp.gate_proj.weight'), feedForward, hidden);
    matrix(at('mlp.up_proj.weight'), feedForward, hidden);
    matrix(at('mlp.down_proj.weight'), hidden, feedForward);
  }
  await writeSafetensors(join(path, 'model.safetensors'), tensors);
  await writeSafetensors(
    join(path, 'tpla_rotation.safetensors'),
    Array.from({ length: numLayers }, (_, layer) =>
      f32(`layers.${layer}.pca`, [latentDim, latentDim], randomRotation(seed * 1000 + 900 + layer, latentDim)),
    ),
  );
  await writeFile(
    join(path, 'config.json'),
    JSON.stringify({
      model_type: 'tpla_mla',
      hidden_size: hidden,
      intermediate_size: feedForward,
      num_hidden_layers: numLayers,
      num_attention_heads: heads,
      vocab_size: tinyVocab,
      max_position_embeddings: 8192,
      rms_norm_eps: 1e-5,
      hidden_act: 'silu',
      kv_lora_rank: latentDim,
      qk_rope_head_dim: ropeDim,
      qk_nope_head_dim: nopeDim,
      v_head_dim: valueDim,
      q_lora_rank: null,
      latent_norm: false,
      softmax_scale: 1 / Math.sqrt(nopeDim + ropeDim),
      rope_interleave: false,
      rope_frequencies: Array.from({ length: ropeDim / 2 }, (_, i) => 100 ** ((-2 * i) / ropeDim)),
      tie_word_embeddings: false,
      attention_bias: bias,
    }),
  );
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true }) };
}

/** Rows made orthonormal one after another (Gram-Schmidt). [n, n] */
function randomRotation(seed: number, n: number): Float32Array {
  const rows = Float64Array.from(randomArray(seed, n * n));
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < i; j++) {
      let dot = 0;
      for (let k = 0; k < n; k++) dot += rows[i * n + k]! * rows[j * n + k]!;
      for (let k = 0; k < n; k++) rows[i * n + k]! -= dot * rows[j * n + k]!;
    }
    let squares = 0;
    for (let k = 0; k < n; k++) squares += rows[i * n + k]! ** 2;
    for (let k = 0; k < n; k++) rows[i * n + k]! /= Math.sqrt(squares);
  }
  return Float32Array.from(rows);
}

function f32(name: string, shape: number[], values: Float32Array): TensorSource {
  return { name, type: 'f32', shape, read: () => new Uint8Array(values.buffer) };
}
