/**
 * Records the nodes of one program in the order they are asked for. Tensors are made in small contexts, opened as they
 * fill up; the graph is made at the end, when its size is known. Order matters: a read after a `scatterRows` must see
 * the new rows, a read before it the old ones, and ggml runs nodes in the order in which they were added.
 */
import {
  GgmlTensor,
  MAX_AXES,
  NO_POINTER,
  STORAGE,
  check,
  describe,
  elements,
  ggmlShape,
  hasContiguousRows,
  isContiguous,
  isRepacked,
} from './tensor.ts';
import type { Tensor, TensorType } from '../kernels.ts';
import type { GgmlFunctions, Pointer } from './functions.ts';

const TENSORS_PER_CONTEXT = 256;

/** Opens a context that holds descriptions only; memory comes from a buffer later. */
export function openContext(functions: GgmlFunctions, bytes: number): Pointer {
  const context = functions.init({ mem_size: bytes, mem_buffer: null, no_alloc: true });
  check(context !== null, () => `cannot allocate ${bytes} bytes for tensor descriptions`);
  return context;
}

type Fields = ConstructorParameters<typeof GgmlTensor>[0];

export interface RecordedGraph {
  /** undefined if there is nothing to compute. */
  readonly graph: Pointer | undefined;
  readonly contexts: readonly Pointer[];
  readonly outputs: readonly GgmlTensor[];
}

export class GraphRecorder {
  readonly functions: GgmlFunctions;
  readonly #backend: Pointer;
  readonly #contexts: Pointer[] = [];
  readonly #nodes: Pointer[] = [];
  readonly #inputs = new Set<Pointer>();
  #roomInContext = 0;

  constructor(functions: GgmlFunctions, backend: Pointer) {
    this.functions = functions;
    this.#backend = backend;
  }

  /** The context for the next single tensor. */
  context(): Pointer {
    if (this.#roomInContext === 0) {
      this.#contexts.push(openContext(this.functions, TENSORS_PER_CONTEXT * this.functions.tensorOverhead()));
      this.#roomInContext = TENSORS_PER_CONTEXT;
    }
    this.#roomInContext--;
    return this.#contexts.at(-1)!;
  }

  /** Checks that an argument may be used in this program, and read as rows. */
  own(tensor: Tensor): GgmlTensor {
    const owned = this.ownWeight(tensor);
    check(!isRepacked(owned), () => `${describe(tensor)} was allocated for matmul only`);
    return owned;
  }

  /** The same for the weight of a product, which may be in a layout of its own. */
  ownWeight(tensor: Tensor): GgmlTensor {
    check(tensor instanceof GgmlTensor, () => `${describe(tensor)} belongs to another backend`);
    const { origin } = tensor;
    if (origin.kind === 'allocated') {
      check(!origin.released, () => `${describe(tensor)} has been released`);
      if (tensor.pointer !== NO_POINTER) this.#inputs.add(tensor.pointer);
    } else {
      check(origin.program === this, () => `${describe(tensor)} is a result of another program`);
    }
    return tensor;
  }

  /** Adds the node that `create` makes in the given context: exactly one tensor, in new memory, row-major. */
  emit(
    type: TensorType,
    shape: readonly number[],
    create: (context: Pointer, functions: GgmlFunctions) => Pointer,
  ): GgmlTensor {
    if (elements(shape) === 0) return this.#empty(type, shape);
    const tensor = new GgmlTensor({
      type,
      shape,
      pointer: create(this.context(), this.functions),
      origin: this.#origin(),
    });
    this.append(tensor);
    return tensor;
  }

  /** Whether the device can compute a node that has not been added yet. */
  supports(node: Pointer): boolean {
    return this.functions.backendSupports(this.#backend, node);
  }

  append(tensor: GgmlTensor): void {
    this.appendNode(tensor.pointer, tensor);
  }

  /** Adds a node whose result is of interest through its side effect only. */
  appendNode(node: Pointer, shown: GgmlTensor): void {
    check(
      this.supports(node),
      () => `the device cannot compute ${this.functions.opDescription(node)} with ${describe(shown)}; use --device CPU`,
    );
    this.#nodes.push(node);
  }

  reshape(x: GgmlTensor, shape: readonly number[]): GgmlTensor {
    if (elements(shape) === 0) return this.#empty(x.type, shape);
    const pointer = this.functions.reshape(this.context(), x.pointer, ...ggmlShape(shape));
    return this.#view(x, { shape, pointer });
  }

  slice(x: GgmlTensor, axis: number, start: number, length: number): GgmlTensor {
    if (x.permuted !== undefined) {
      const { source, order } = x.permuted;
      return this.permute(this.slice(source, order[axis]!, start, length), order);
    }
    const shape = x.shape.map((size, a) => (a === axis ? length : size));
    if (elements(shape) === 0) return this.#empty(x.type, shape);
    const { block } = STORAGE[x.type];
    const offset = (axis === x.shape.length - 1 ? start / block : start) * x.strides[axis]!;
    return this.view(x, shape, x.strides, offset);
  }

  /** Another shape and strides over x's memory; rows of x and of the view are contiguous. */
  view(x: GgmlTensor, shape: readonly number[], strides: readonly number[], offset: number): GgmlTensor {
    const ne = ggmlShape(shape);
    const nb = [0, 0, 0, 0];
    for (let axis = 1; axis < MAX_AXES; axis++) {
      // ggml compares strides of absent axes too, so these are those of a row-major tensor.
      const rowBytes = (ne[0] / STORAGE[x.type].block) * STORAGE[x.type].blockBytes;
      nb[axis] = strides[shape.length - 1 - axis] ?? (axis === 1 ? rowBytes : nb[axis - 1]! * ne[axis - 1]!);
    }
    const pointer = this.functions.view(this.context(), x.pointer, ...ne, nb[1]!, nb[2]!, nb[3]!, offset);
    return this.#view(x, { shape, pointer, strides, offset: x.offset + offset });
  }

  permute(x: GgmlTensor, order: readonly number[]): GgmlTensor {
    const shape = order.map((axis) => x.shape[axis]!);
    if (elements(shape) === 0) return this.#empty(x.type, shape);
    if (x.permuted !== undefined) {
      const inner = x.permuted.order;
      return this.permute(
        x.permuted.source,
        order.map((axis) => inner[axis]!),
      );
    }
    const last = order.length - 1;
    // ggml asks where each axis goes, we say where each axis comes from.
    const axes: [number, number, number, number] = [0, 1, 2, 3];
    order.forEach((from, to) => {
      axes[last - from] = last - to;
    });
    const pointer = this.functions.permute(this.context(), x.pointer, ...axes);
    return this.#view(x, {
      shape,
      strides: order.map((axis) => x.strides[axis]!),
      pointer,
      permuted: { source: x, order },
    });
  }

  contiguous(x: GgmlTensor): GgmlTensor {
    return this.emit(x.type, x.shape, (c, f) => f.cont(c, x.pointer));
  }

  /** x itself, or a copy if elements of its rows do not lie side by side. */
  withContiguousRows(x: GgmlTensor): GgmlTensor {
    return hasContiguousRows(x) ? x : this.contiguous(x);
  }

  /** x itself if it is row-major without gaps, otherwise a copy that is. */
  packed(x: GgmlTensor): GgmlTensor {
    return isContiguous(x) ? x : this.contiguous(x);
  }

  /** Ends recording. The graph's outputs keep their memory until another program runs. */
  finish(outputs: readonly Tensor[]): RecordedGraph {
    const { functions } = this;
    const packed = outputs.map((output) => {
      check(output.type === 'f32', () => `output ${describe(output)}: outputs must be f32`);
      return this.packed(this.own(output));
    });
    if (this.#nodes.length === 0) return { graph: undefined, contexts: this.#contexts, outputs: packed };
    for (const output of packed) {
      if (output.pointer === NO_POINTER) continue;
      functions.setOutput(output.pointer);
    }
    const size = this.#nodes.length + this.#inputs.size;
    const context = openContext(functions, functions.graphOverhead(size, false));
    this.#contexts.push(context);
    const graph = functions.newGraph(context, size, false);
    for (const node of this.#nodes) functions.expand(graph, node);
    return { graph, contexts: this.#contexts, outputs: packed };
  }

  /** Frees what was recorded when a builder failed. */
  abandon(): void {
    for (const context of this.#contexts) this.functions.free(context);
  }

  #view(x: GgmlTensor, fields: Pick<Fields, 'shape' | 'pointer'> & Partial<Fields>): GgmlTensor {
    const { type, root, offset } = x;
    const tensor = new GgmlTensor({ type, root, offset, ...fields, origin: this.#origin() });
    this.append(tensor);
    return tensor;
  }

  #empty(type: TensorType, shape: readonly number[]): GgmlTensor {
    return new GgmlTensor({ type, shape, pointer: NO_POINTER, origin: this.#origin() });
  }

  #origin(): { kind: 'program'; program: object } {
    return { kind: 'program', program: this };
  }
}
