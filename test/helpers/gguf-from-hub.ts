/**
 * Writes a tiny Hugging Face checkpoint as the GGUF file that llama.cpp's converter would make of it: tensor names,
 * metadata keys, stacked experts, permuted rows, gains with their 1. The names are a map of the test's own, so that a
 * wrong one in model/families/ shows.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { toFloat32 } from '../../model/dequantize.ts';
import { writeGguf, type TestTensor, type Value } from '../unit/model/write-gguf.ts';
import { readTensors } from './golden.ts';

type Architecture = 'llama' | 'qwen2' | 'qwen3' | 'qwen3moe' | 'gemma2' | 'deepseek2';
type Config = Record<string, number | string | boolean | null | undefined | Record<string, number | string>>;

export interface GgufOptions {
  readonly architecture: Architecture;
  /** deepseek2: W_UK and W_UV in two tensors, as newer files have them. */
  readonly splitLatentUp?: boolean;
  /** One tensor per expert, as the first Mixtral files had them. */
  readonly separateExperts?: boolean;
}

/** [values row-major, shape outermost first] */
type Matrix = { readonly values: Float32Array; readonly shape: readonly number[] };

export async function writeGgufFromHub(folder: string, path: string, options: GgufOptions): Promise<void> {
  const config: Config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'));
  const source = readMatrices(folder);
  const tensors: TestTensor[] = [];
  const put = (name: string, matrix: Matrix): void => {
    const { values, shape } = matrix;
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    tensors.push({ name, ne: shape.toReversed(), typeNumber: 0, bytes });
  };
  for (const [name, matrix] of source) {
    if (name.includes('.experts.')) continue;
    const layer = /^model\.layers\.(\d+)\.(.*)$/.exec(name);
    if (layer === null) {
      put(outerNames[name]!, gainOf(options.architecture, name, matrix));
      continue;
    }
    const [, number, rest = ''] = layer;
    // Layers that predict further tokens are not part of the file.
    if (Number(number) >= num(config, 'num_hidden_layers')) continue;
    const prefix = `blk.${number}.`;
    if (rest === 'self_attn.kv_b_proj.weight' && options.splitLatentUp === true) {
      const { key, value } = splitLatentUp(config, matrix);
      put(`${prefix}attn_k_b.weight`, key);
      put(`${prefix}attn_v_b.weight`, value);
      continue;
    }
    const ggufName = (options.architecture === 'gemma2' ? gemmaNames[rest] : undefined) ?? layerNames[rest];
    if (ggufName === undefined) throw new Error(`no GGUF name for ${name}`);
    put(prefix + ggufName, gainOf(options.architecture, name, permuted(options.architecture, config, rest, matrix)));
  }
  for (const [name, matrix] of expertTensors(source, config, options.separateExperts === true)) put(name, matrix);
  await writeGguf(path, metadataOf(config, options), tensors);
}

const outerNames: Record<string, string> = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
};

const layerNames: Record<string, string> = {
  'input_layernorm.weight': 'attn_norm.weight',
  'post_attention_layernorm.weight': 'ffn_norm.weight',
  'self_attn.q_proj.weight': 'attn_q.weight',
  'self_attn.q_proj.bias': 'attn_q.bias',
  'self_attn.q_norm.weight': 'attn_q_norm.weight',
  'self_attn.k_proj.weight': 'attn_k.weight',
  'self_attn.k_proj.bias': 'attn_k.bias',
  'self_attn.k_norm.weight': 'attn_k_norm.weight',
  'self_attn.v_proj.weight': 'attn_v.weight',
  'self_attn.v_proj.bias': 'attn_v.bias',
  'self_attn.o_proj.weight': 'attn_output.weight',
  'self_attn.q_a_proj.weight': 'attn_q_a.weight',
  'self_attn.q_a_layernorm.weight': 'attn_q_a_norm.weight',
  'self_attn.q_b_proj.weight': 'attn_q_b.weight',
  'self_attn.kv_a_proj_with_mqa.weight': 'attn_kv_a_mqa.weight',
  'self_attn.kv_a_layernorm.weight': 'attn_kv_a_norm.weight',
  'self_attn.kv_b_proj.weight': 'attn_kv_b.weight',
  'mlp.gate_proj.weight': 'ffn_gate.weight',
  'mlp.up_proj.weight': 'ffn_up.weight',
  'mlp.down_proj.weight': 'ffn_down.weight',
  'mlp.gate.weight': 'ffn_gate_inp.weight',
  'block_sparse_moe.gate.weight': 'ffn_gate_inp.weight',
  'mlp.gate.e_score_correction_bias': 'exp_probs_b.bias',
  'mlp.shared_experts.gate_proj.weight': 'ffn_gate_shexp.weight',
  'mlp.shared_experts.up_proj.weight': 'ffn_up_shexp.weight',
  'mlp.shared_experts.down_proj.weight': 'ffn_down_shexp.weight',
};

const gemmaNames: Record<string, string> = {
  'post_attention_layernorm.weight': 'post_attention_norm.weight',
  'pre_feedforward_layernorm.weight': 'ffn_norm.weight',
  'post_feedforward_layernorm.weight': 'post_ffw_norm.weight',
};

const expertParts: [RegExp, string][] = [
  [/(gate_proj|w1)\.weight$/, 'gate'],
  [/(up_proj|w3)\.weight$/, 'up'],
  [/(down_proj|w2)\.weight$/, 'down'],
];

function expertTensors(source: Map<string, Matrix>, config: Config, separate: boolean): [string, Matrix][] {
  const count = num(config, 'num_local_experts') || num(config, 'num_experts') || num(config, 'n_routed_experts');
  const result: [string, Matrix][] = [];
  for (let layer = 0; layer < num(config, 'num_hidden_layers'); layer++) {
    for (const [pattern, part] of expertParts) {
      const each = Array.from({ length: count }, (_, expert) => {
        const start = new RegExp(`^model\\.layers\\.${layer}\\..*\\.experts\\.${expert}\\.`);
        return [...source].find(([name]) => start.test(name) && pattern.test(name))?.[1];
      }).filter((matrix) => matrix !== undefined);
      const [first] = each;
      if (first === undefined) continue;
      if (separate) {
        each.forEach((matrix, expert) => result.push([`blk.${layer}.ffn_${part}.${expert}.weight`, matrix]));
        continue;
      }
      const values = new Float32Array(each.length * first.values.length);
      each.forEach((matrix, expert) => values.set(matrix.values, expert * first.values.length));
      result.push([`blk.${layer}.ffn_${part}_exps.weight`, { values, shape: [count, ...first.shape] }]);
    }
  }
  return result;
}

/** kv_b [H (n + v), r] -> key [H, r, n] and value [H, v, r] */
function splitLatentUp(config: Config, { values }: Matrix): { key: Matrix; value: Matrix } {
  const [H, r] = [num(config, 'num_attention_heads'), num(config, 'kv_lora_rank')];
  const [n, v] = [num(config, 'qk_nope_head_dim'), num(config, 'v_head_dim')];
  const key = new Float32Array(H * r * n);
  const value = new Float32Array(H * v * r);
  for (let h = 0; h < H; h++)
    for (let column = 0; column < r; column++) {
      for (let i = 0; i < n; i++) key[(h * r + column) * n + i] = values[(h * (n + v) + i) * r + column]!;
      for (let i = 0; i < v; i++) value[(h * v + i) * r + column] = values[(h * (n + v) + n + i) * r + column]!;
    }
  return { key: { values: key, shape: [H, r, n] }, value: { values: value, shape: [H, v, r] } };
}

/** Files of architecture llama hold rows of q and k in neighbour-pair order. */
function permuted(architecture: Architecture, config: Config, name: string, matrix: Matrix): Matrix {
  if (architecture !== 'llama' || !/^self_attn\.[qk]_proj/.test(name)) return matrix;
  const headDim = num(config, 'head_dim') || num(config, 'hidden_size') / num(config, 'num_attention_heads');
  const cols = matrix.values.length / matrix.shape[0]!;
  const values = new Float32Array(matrix.values.length);
  for (let row = 0; row < matrix.shape[0]!; row++) {
    const within = row % headDim;
    const half = Math.floor(within / (headDim / 2));
    const to = row - within + 2 * (within - half * (headDim / 2)) + half;
    values.set(matrix.values.subarray(row * cols, (row + 1) * cols), to * cols);
  }
  return { values, shape: matrix.shape };
}

function gainOf(architecture: Architecture, name: string, matrix: Matrix): Matrix {
  if (architecture !== 'gemma2' || !name.endsWith('norm.weight')) return matrix;
  return { ...matrix, values: matrix.values.map((gain) => gain + 1) };
}

function metadataOf(config: Config, options: GgufOptions): Record<string, Value> {
  const { architecture } = options;
  const headDim = num(config, 'head_dim') || num(config, 'hidden_size') / num(config, 'num_attention_heads');
  const own: Record<string, Value> = {
    context_length: u32(config, 'max_position_embeddings'),
    embedding_length: u32(config, 'hidden_size'),
    block_count: u32(config, 'num_hidden_layers'),
    feed_forward_length: u32(config, 'intermediate_size'),
    'attention.head_count': u32(config, 'num_attention_heads'),
    'attention.head_count_kv': { u32: num(config, 'num_key_value_heads') || num(config, 'num_attention_heads') },
    'attention.layer_norm_rms_epsilon': { f32: num(config, 'rms_norm_eps') },
    'rope.freq_base': { f32: num(config, 'rope_theta') },
    'attention.key_length': { u32: headDim },
    'attention.value_length': { u32: headDim },
  };
  const experts = num(config, 'num_local_experts') || num(config, 'num_experts') || num(config, 'n_routed_experts');
  if (experts > 0) {
    own['expert_count'] = { u32: experts };
    own['expert_used_count'] = u32(config, 'num_experts_per_tok');
    if (config['moe_intermediate_size'] !== undefined)
      own['expert_feed_forward_length'] = u32(config, 'moe_intermediate_size');
  }
  if (architecture === 'gemma2') Object.assign(own, gemmaKeys(config));
  if (architecture === 'deepseek2') Object.assign(own, deepseekKeys(config, options.splitLatentUp === true));
  return {
    'general.architecture': { string: architecture },
    ...Object.fromEntries(Object.entries(own).map(([key, value]) => [`${architecture}.${key}`, value])),
  };
}

function gemmaKeys(config: Config): Record<string, Value> {
  return {
    'attention.sliding_window': u32(config, 'sliding_window'),
    attn_logit_softcapping: { f32: num(config, 'attn_logit_softcapping') },
    final_logit_softcapping: { f32: num(config, 'final_logit_softcapping') },
    'attention.scale': { f32: num(config, 'query_pre_attn_scalar') ** -0.5 },
  };
}

function deepseekKeys(config: Config, split: boolean): Record<string, Value> {
  const [r, p] = [num(config, 'kv_lora_rank'), num(config, 'qk_rope_head_dim')];
  const [n, v] = [num(config, 'qk_nope_head_dim'), num(config, 'v_head_dim')];
  const scaling = config['rope_scaling'];
  if (typeof scaling !== 'object' || scaling === null) throw new Error('deepseek2 without rope_scaling');
  return {
    'attention.kv_lora_rank': { u32: r },
    ...(config['q_lora_rank'] === null ? {} : { 'attention.q_lora_rank': u32(config, 'q_lora_rank') }),
    // Files with split tensors are made for absorbed attention and count the cache row as the key.
    'attention.head_count_kv': { u32: split ? 1 : num(config, 'num_attention_heads') },
    'attention.key_length': { u32: split ? r + p : n + p },
    'attention.value_length': { u32: split ? r : v },
    ...(split ? { 'attention.key_length_mla': { u32: n + p }, 'attention.value_length_mla': { u32: v } } : {}),
    'rope.dimension_count': { u32: p },
    'rope.scaling.type': { string: 'yarn' },
    'rope.scaling.factor': { f32: Number(scaling['factor']) },
    'rope.scaling.original_context_length': { u32: Number(scaling['original_max_position_embeddings']) },
    'rope.scaling.yarn_beta_fast': { f32: Number(scaling['beta_fast']) },
    'rope.scaling.yarn_beta_slow': { f32: Number(scaling['beta_slow']) },
    'rope.scaling.yarn_log_multiplier': { f32: 0.1 * Number(scaling['mscale_all_dim']) },
    leading_dense_block_count: u32(config, 'first_k_dense_replace'),
    expert_shared_count: u32(config, 'n_shared_experts'),
    expert_weights_scale: { f32: num(config, 'routed_scaling_factor') },
    expert_weights_norm: { bool: config['norm_topk_prob'] === true },
    expert_gating_func: { u32: config['scoring_func'] === 'sigmoid' ? 2 : 1 },
    expert_group_count: u32(config, 'n_group'),
    expert_group_used_count: u32(config, 'topk_group'),
  };
}

function readMatrices(folder: string): Map<string, Matrix> {
  const path = join(folder, 'model.safetensors');
  const shapes = shapesOf(path);
  return new Map(
    [...readTensors(path)].map(([name, { dtype, bytes }]) => {
      const shape = shapes.get(name)!;
      const cols = shape.reduce((a, b) => a * b, 1);
      const type = dtype === 'BF16' ? 'bf16' : 'f32';
      return [name, { values: toFloat32({ rows: 1, cols, type, bytes: new Uint8Array(bytes) }), shape }];
    }),
  );
}

function shapesOf(path: string): Map<string, number[]> {
  const file = readFileSync(path);
  const header: Record<string, { shape: number[] }> = JSON.parse(
    file.subarray(8, 8 + Number(file.readBigUInt64LE(0))).toString('utf8'),
  );
  return new Map(Object.entries(header).map(([name, { shape }]) => [name, shape]));
}

function num(config: Config, key: string): number {
  return Number(config[key] ?? 0);
}

function u32(config: Config, key: string): Value {
  return { u32: num(config, key) };
}
