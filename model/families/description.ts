/**
 * What a family says about a model: its ModelConfig, and under which tensor name each role is stored. A family is a
 * pair of functions (from config.json, from GGUF metadata) that return one of these; open.ts lists them.
 */
import type { ModelConfig } from '../../config/model-config.ts';
import type { LayerRole, ModelRole } from '../checkpoint.ts';
import type { GgufMetadata } from '../gguf.ts';
import type { StoredTensor } from '../tensor-store.ts';

export type Role = ModelRole | LayerRole;

/** `{layer}` stands for the layer's number, `{expert}` for the expert's: such a role is stored as one matrix per expert. */
export type TensorNames = Readonly<Partial<Record<Role, string>>>;

export type Tensors = ReadonlyMap<string, StoredTensor>;

export interface ModelDescription {
  readonly config: ModelConfig;
  /** The roles this model has. A role that is not named here does not exist, whatever the file holds. */
  readonly names: TensorNames;
  /** Roles of `names` that may be missing in the file. */
  readonly optional: readonly Role[];
  /**
   * Roles whose rows are stored in the order of neighbour-pair rope (2i, 2i+1) and have to be put back into the halves
   * order (i, i + headDim/2) when read.
   */
  readonly neighbourPairs: readonly Role[];
  /** Norms whose stored numbers are the gain minus 1. */
  readonly gainsMinusOne?: readonly Role[];
  /** Rows and columns of a block that shares a scale, of fp8 matrices with a `_scale_inv` beside them. */
  readonly scaleBlock?: readonly [number, number] | undefined;
  /** latentUp stored in two tensors: key part [H, r, n] (transposed) and value part [H, v, r]. Instead of a name. */
  readonly latentParts?: { readonly key: string; readonly value: string };
}

/** @param config the parsed config.json  @param tensors undefined where the configuration alone is at hand */
export type DescribeHub = (config: unknown, tensors: Tensors | undefined) => ModelDescription;

export interface GgufSource {
  readonly metadata: GgufMetadata;
  readonly tensors: Tensors;
  /** Contents of rope_freqs.weight, where the file has it: divisors of the rotary frequencies. */
  readonly ropeDivisors: readonly number[] | undefined;
}

export type DescribeGguf = (source: GgufSource) => ModelDescription;

/** `names` without some roles. */
export function without(names: TensorNames, roles: readonly Role[]): TensorNames {
  return Object.fromEntries(Object.entries(names).filter(([role]) => !roles.some((other) => other === role)));
}
