/**
 * Finds every weight of a model in a file: which tensors make up a role, how they are to be read, and whether presence,
 * type and shape agree with the configuration. Nothing is read here. Next: read-weight.ts (reading), shapes.ts.
 */
import { ConfigError, invariant } from '../config/errors.ts';
import { routes, type ModelConfig } from '../config/model-config.ts';
import type { ModelRole, WeightShape } from './checkpoint.ts';
import type { ModelDescription, Role } from './families/description.ts';
import { expectedShapes, type ExpectedShape } from './shapes.ts';
import type { StoredTensor, TensorStore } from './tensor-store.ts';
import { isWeightType } from './tensor-types.ts';

/** How the stored numbers become the weight. */
export type WeightSource =
  /** As they are. Several tensors lie one below the other, each with the same number of rows. */
  | { readonly kind: 'plain'; readonly tensors: readonly StoredTensor[] }
  /** Rows in the order of neighbour-pair rope. */
  | { readonly kind: 'neighbourPairs'; readonly tensor: StoredTensor; readonly headDim: number }
  /** A gain minus 1. */
  | { readonly kind: 'minusOne'; readonly tensor: StoredTensor }
  /** 8-bit floats, each with a scale per block; one pair per expert. */
  | { readonly kind: 'fp8'; readonly pairs: readonly Fp8Matrix[] }
  /** latentUp in two parts: key [H, r, n] and value [H, v, r]. */
  | { readonly kind: 'latentParts'; readonly key: StoredTensor; readonly value: StoredTensor };

export interface Fp8Matrix {
  readonly tensor: StoredTensor;
  /** undefined: the numbers stand for themselves. [rows / block[0], columns / block[1]], rounded up */
  readonly scale: StoredTensor | undefined;
  readonly block: readonly [number, number];
}

export interface LocatedWeight extends WeightShape {
  readonly source: WeightSource;
}

const modelRoles: ReadonlySet<string> = new Set<ModelRole>(['embedding', 'head', 'finalNorm']);
const denseRoles: ReadonlySet<Role> = new Set<Role>(['gate', 'up', 'down']);
const expertRoles: ReadonlySet<Role> = new Set<Role>([
  'router',
  'routerBias',
  'expertGate',
  'expertUp',
  'expertDown',
  'sharedGate',
  'sharedUp',
  'sharedDown',
]);

/** @throws ConfigError when a weight is missing, has another shape than the configuration says, or an unknown type */
export function locateWeights(store: TensorStore, description: ModelDescription): Map<string, LocatedWeight> {
  const { config, names, latentParts } = description;
  const weights = new Map<string, LocatedWeight>();
  const locate = (role: Role, pattern: string, layer?: number): void => {
    const weight = locateWeight(store, description, role, pattern, layer);
    if (weight !== undefined) weights.set(keyOf(role, layer), weight);
  };
  // Object.entries forgets the key type; names has roles as keys by its own type.
  const roles = Object.entries(names) as [Role, string][];
  for (const [role, pattern] of roles.filter(([role]) => modelRoles.has(role))) locate(role, pattern);
  const layerRoles = roles.filter(([role]) => !modelRoles.has(role));
  for (let layer = 0; layer < config.numLayers; layer++) {
    for (const [role, pattern] of layerRoles) if (layerHas(config, role, layer)) locate(role, pattern, layer);
    if (latentParts !== undefined)
      weights.set(keyOf('latentUp', layer), locateLatentParts(store, config, latentParts, layer));
  }
  return weights;
}

export function keyOf(role: Role, layer: number | undefined): string {
  return layer === undefined ? role : `${layer} ${role}`;
}

export function label(role: Role, layer: number | undefined): string {
  return layer === undefined ? role : `layers.${layer} ${role}`;
}

/** Dense layers have no experts, and routed ones no dense matrices. */
export function layerHas(config: ModelConfig, role: Role, layer: number): boolean {
  if (denseRoles.has(role)) return !routes(config, layer);
  return !expertRoles.has(role) || routes(config, layer);
}

/** undefined for an optional weight that the file does not have */
function locateWeight(
  store: TensorStore,
  description: ModelDescription,
  role: Role,
  pattern: string,
  layer: number | undefined,
): LocatedWeight | undefined {
  const { config, optional } = description;
  const expected = expectedShapes(config)[role];
  invariant(expected, `families: ${config.architecture} names ${role}, which such a model does not have`);
  const what = label(role, layer);
  const name = pattern.replace('{layer}', String(layer));
  const count = name.includes('{expert}') ? (config.experts?.count ?? 0) : 1;
  const tensors: StoredTensor[] = [];
  for (let expert = 0; expert < count; expert++) {
    const tensorName = name.replace('{expert}', String(expert));
    const tensor = store.tensors.get(tensorName);
    if (tensor === undefined && optional.includes(role)) return undefined;
    if (tensor === undefined) throw missing(what, tensorName, store);
    tensors.push(tensor);
  }
  const each = { ...expected, rows: expected.rows / count };
  for (const tensor of tensors) checkShape(tensor, each, what);
  return { rows: expected.rows, cols: expected.cols, ...sourceOf(store, description, role, tensors, what) };
}

function sourceOf(
  store: TensorStore,
  description: ModelDescription,
  role: Role,
  tensors: readonly StoredTensor[],
  what: string,
): Pick<LocatedWeight, 'type' | 'fp8' | 'source'> {
  const [first] = tensors;
  invariant(first !== undefined, `${what}: no tensors`);
  const other = tensors.find(({ type }) => type !== first.type);
  if (other !== undefined)
    throw new ConfigError(
      `weights: ${what} is stored as ${first.type} (tensor ${first.name}) and ${other.type} (tensor ${other.name}); expected one type for all experts`,
    );
  if (first.type === 'f8_e4m3') {
    const block = description.scaleBlock ?? [1, 1];
    return {
      type: 'f32',
      fp8: true,
      source: { kind: 'fp8', pairs: tensors.map((tensor) => fp8Matrix(store, tensor, block, what)) },
    };
  }
  if (!isWeightType(first.type))
    throw new ConfigError(
      `weights: ${what} is stored as ${first.type}, which cannot be computed with (tensor ${first.name}); use a file in f32, f16, bf16, q8_0, q4_K or another common type`,
    );
  if (description.gainsMinusOne?.includes(role) === true)
    return { type: 'f32', source: { kind: 'minusOne', tensor: first } };
  const { attention } = description.config;
  if (description.neighbourPairs.includes(role)) {
    invariant(attention.kind === 'gqa', 'neighbour pairs are undone per head of grouped-query attention');
    return { type: first.type, source: { kind: 'neighbourPairs', tensor: first, headDim: attention.headDim } };
  }
  return { type: first.type, source: { kind: 'plain', tensors } };
}

function fp8Matrix(
  store: TensorStore,
  tensor: StoredTensor,
  block: readonly [number, number],
  what: string,
): Fp8Matrix {
  const scale = store.tensors.get(`${tensor.name}_scale_inv`);
  if (scale === undefined) return { tensor, scale, block };
  const [rows = 1, cols = 1] = tensor.shape;
  const wanted = [Math.ceil(rows / block[0]), Math.ceil(cols / block[1])];
  if (scale.shape.join() !== wanted.join() || scale.type !== 'f32')
    throw new ConfigError(
      `weights: ${what}: the scales ${scale.name} are ${scale.type} [${scale.shape.join(', ')}], expected f32 [${wanted.join(', ')}] for blocks of ${block.join(' x ')}`,
    );
  return { tensor, scale, block };
}

function locateLatentParts(
  store: TensorStore,
  config: ModelConfig,
  names: { readonly key: string; readonly value: string },
  layer: number,
): LocatedWeight {
  const { attention, numHeads } = config;
  invariant(attention.kind === 'mla', 'latent parts of a model without a latent');
  const { latentDim, nopeDim, valueDim } = attention;
  const find = (pattern: string, rows: number, cols: number, because: string): StoredTensor => {
    const name = pattern.replace('{layer}', String(layer));
    const tensor = store.tensors.get(name);
    if (tensor === undefined) throw missing(label('latentUp', layer), name, store);
    checkShape(tensor, { rows, cols, because }, label('latentUp', layer));
    if (!isWeightType(tensor.type))
      throw new ConfigError(`weights: ${name} is stored as ${tensor.type}, which cannot be computed with`);
    return tensor;
  };
  return {
    rows: numHeads * (nopeDim + valueDim),
    cols: latentDim,
    type: 'f32',
    source: {
      kind: 'latentParts',
      key: find(names.key, numHeads * latentDim, nopeDim, '(heads x latent) x nope'),
      value: find(names.value, numHeads * valueDim, latentDim, '(heads x value) x latent'),
    },
  };
}

function missing(what: string, name: string, store: TensorStore): ConfigError {
  return new ConfigError(
    `weights: ${what} is missing: no tensor ${name} in ${store.tensors.size}; do configuration and weights belong together?`,
  );
}

/** A tensor with more than two axes counts as its last axis times all others. */
function checkShape(tensor: StoredTensor, expected: ExpectedShape, what: string): void {
  const { shape } = tensor;
  const cols = shape.at(-1) ?? 1;
  const rows = shape.slice(0, -1).reduce((product, length) => product * length, 1);
  const isVector = expected.rows === 1;
  const wanted = isVector ? [expected.cols] : [expected.rows, expected.cols];
  const fits = shape.length > 2 ? rows === expected.rows && cols === expected.cols : shape.join() === wanted.join();
  if (!fits)
    throw new ConfigError(
      `weights: ${what} is [${shape.join(', ')}], expected [${wanted.join(', ')}] = ${expected.because} (tensor ${tensor.name}); do configuration and weights belong together?`,
    );
}
