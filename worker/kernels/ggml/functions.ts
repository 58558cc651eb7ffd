/**
 * The C functions of ggml that this backend calls, bound once: the interface is their TypeScript side, bindFunctions
 * the C side. Pointers are opaque integers. ggml ends the process on a wrong argument (GGML_ASSERT), so callers check
 * shapes and types first. Loaded by library.ts.
 */
import koffi, { type LibraryHandle } from 'koffi';

/** Address of something of ggml's. Never of tensor memory, which may be on a device. */
export type Pointer = bigint;

type Unary = (context: Pointer, a: Pointer) => Pointer;
type Binary = (context: Pointer, a: Pointer, b: Pointer) => Pointer;
type Four = readonly [number, number, number, number];

export interface GgmlFunctions {
  readonly version: () => string;
  readonly setLog: (callback: Pointer | null, data: null) => void;
  readonly loadBackends: (folder: string) => void;

  readonly deviceCount: () => number;
  readonly deviceAt: (index: number) => Pointer;
  readonly deviceByName: (name: string) => Pointer | null;
  readonly deviceName: (device: Pointer) => string;
  readonly deviceDescription: (device: Pointer) => string;
  readonly deviceInit: (device: Pointer, parameters: null) => Pointer | null;
  readonly deviceRegistry: (device: Pointer) => Pointer;
  readonly procAddress: (registry: Pointer, name: string) => Pointer | null;
  readonly backendFree: (backend: Pointer) => void;
  readonly backendSupports: (backend: Pointer, node: Pointer) => boolean;
  readonly backendBufferType: (backend: Pointer) => Pointer;

  readonly allocateContext: (context: Pointer, backend: Pointer) => Pointer | null;
  readonly bufferTypeName: (bufferType: Pointer) => string;
  readonly bufferTypeAllocate: (bufferType: Pointer, bytes: number) => Pointer | null;
  readonly bufferTypeAlignment: (bufferType: Pointer) => number;
  readonly bufferTypeSize: (bufferType: Pointer, tensor: Pointer) => number;
  readonly bufferBase: (buffer: Pointer) => Pointer;
  readonly tensorData: (tensor: Pointer) => Pointer;
  readonly tensorBytes: (tensor: Pointer) => number;
  readonly tensorPlace: (buffer: Pointer, tensor: Pointer, address: Pointer) => number;
  readonly bufferClear: (buffer: Pointer, value: number) => void;
  readonly bufferFree: (buffer: Pointer) => void;
  readonly tensorSet: (tensor: Pointer, data: Uint8Array, offset: number, size: number) => void;
  readonly tensorGet: (tensor: Pointer, data: Float32Array, offset: number, size: number) => void;

  readonly init: (parameters: { mem_size: number; mem_buffer: null; no_alloc: boolean }) => Pointer | null;
  readonly free: (context: Pointer) => void;
  readonly tensorOverhead: () => number;
  readonly graphOverhead: (size: number, grads: boolean) => number;
  readonly newGraph: (context: Pointer, size: number, grads: boolean) => Pointer;
  readonly expand: (graph: Pointer, node: Pointer) => void;
  readonly compute: (backend: Pointer, graph: Pointer) => number;
  readonly setOutput: (tensor: Pointer) => void;
  readonly opDescription: (tensor: Pointer) => string;

  readonly allocatorNew: (bufferType: Pointer) => Pointer;
  readonly allocatorReserve: (allocator: Pointer, graph: Pointer) => boolean;
  readonly allocatorAllocate: (allocator: Pointer, graph: Pointer) => boolean;
  readonly allocatorSize: (allocator: Pointer, index: number) => number;
  readonly allocatorFree: (allocator: Pointer) => void;

  readonly newTensor: (context: Pointer, type: number, ...ne: Four) => Pointer;
  readonly view: (
    context: Pointer,
    a: Pointer,
    ...geometry: [...Four, nb1: number, nb2: number, nb3: number, offset: number]
  ) => Pointer;
  readonly reshape: (context: Pointer, a: Pointer, ...ne: Four) => Pointer;
  readonly permute: (context: Pointer, a: Pointer, ...axes: Four) => Pointer;
  readonly cont: Unary;
  readonly cpy: Binary;
  readonly cast: (context: Pointer, a: Pointer, type: number) => Pointer;
  readonly repeat: (context: Pointer, a: Pointer, ...ne: Four) => Pointer;
  /** Zeros behind each axis. */
  readonly pad: (context: Pointer, a: Pointer, ...zeros: Four) => Pointer;
  readonly concat: (context: Pointer, a: Pointer, b: Pointer, axis: number) => Pointer;
  readonly getRows: Binary;
  readonly setRows: (context: Pointer, target: Pointer, rows: Pointer, indices: Pointer) => Pointer;
  readonly mulMat: Binary;
  readonly mulMatId: (context: Pointer, weights: Pointer, x: Pointer, ids: Pointer) => Pointer;
  readonly outProd: Binary;
  readonly add: Binary;
  readonly mul: Binary;
  readonly div: Binary;
  readonly scale: (context: Pointer, a: Pointer, factor: number) => Pointer;
  readonly scaleBias: (context: Pointer, a: Pointer, factor: number, bias: number) => Pointer;
  readonly sub: Binary;
  readonly log: Unary;
  readonly pool2d: (
    context: Pointer,
    a: Pointer,
    kind: number,
    ...sizes: [k0: number, k1: number, step0: number, step1: number, pad0: number, pad1: number]
  ) => Pointer;
  readonly sqr: Unary;
  readonly tanh: Unary;
  readonly sigmoid: Unary;
  readonly swiglu: Binary;
  readonly rmsNorm: (context: Pointer, a: Pointer, eps: number) => Pointer;
  readonly softMax: (context: Pointer, a: Pointer, mask: Pointer, scale: number, maxBias: number) => Pointer;
  readonly softMaxAddSinks: (softMax: Pointer, sinks: Pointer) => void;
  readonly rope: (
    context: Pointer,
    a: Pointer,
    positions: Pointer,
    factors: Pointer,
    dims: number,
    mode: number,
    originalContext: number,
    base: number,
    scale: number,
    extension: number,
    attention: number,
    betaFast: number,
    betaSlow: number,
  ) => Pointer;
  readonly flash: (
    context: Pointer,
    q: Pointer,
    k: Pointer,
    v: Pointer,
    mask: Pointer,
    scale: number,
    maxBias: number,
    softcap: number,
  ) => Pointer;

  readonly typeName: (type: number) => string;
  readonly blockSize: (type: number) => number;
  readonly typeSize: (type: number) => number;
  readonly quantizeChunk: (
    type: number,
    source: Float32Array,
    target: Uint8Array,
    start: number,
    rows: number,
    columns: number,
    importance: null,
  ) => number;
}

/** @param base libggml-base @param registry libggml, which knows the devices */
export function bindFunctions(base: LibraryHandle, registry: LibraryHandle): GgmlFunctions {
  return { ...bindDevices(base, registry), ...bindMemory(base), ...bindOperations(base) };
}

/** ggml_backend_dev_get_extra_bufts of a device's own library. @returns buffer types, best first */
export function extraBufferTypes(address: Pointer, device: Pointer): Pointer[] {
  const list: Pointer | null = koffi.call(address, koffi.proto('void *', ['void *']), device);
  if (list === null) return [];
  const types: Pointer[] = [];
  for (;;) {
    const type: Pointer | null = koffi.decode(list, types.length * koffi.sizeof('void *'), 'void *');
    if (type === null) return types;
    types.push(type);
  }
}

const logCallback = koffi.pointer(koffi.proto('void', ['int', 'str', 'void *']));

/** Runs `work` and returns what ggml would have written to stderr meanwhile. */
export function captureLog(functions: Pick<GgmlFunctions, 'setLog'>, work: () => void): string {
  let text = '';
  const callback = koffi.register((_level: number, line: string) => {
    text += line;
  }, logCallback);
  functions.setLog(callback, null);
  try {
    work();
  } finally {
    functions.setLog(null, null);
    koffi.unregister(callback);
  }
  return text;
}

type DeviceNames = 'version' | 'setLog' | 'loadBackends' | 'procAddress' | `device${string}` | `backend${string}`;
type MemoryNames =
  | 'init'
  | 'free'
  | 'newGraph'
  | 'expand'
  | 'compute'
  | 'setOutput'
  | 'opDescription'
  | 'newTensor'
  | 'quantizeChunk'
  | 'blockSize'
  | `type${string}`
  | 'allocateContext'
  | `buffer${string}`
  | `tensor${string}`
  | `graph${string}`
  | `allocator${string}`;
type Part<Names> = Pick<GgmlFunctions, Extract<keyof GgmlFunctions, Names>>;

function bindDevices(base: LibraryHandle, registry: LibraryHandle): Part<DeviceNames> {
  return {
    version: base.func('const char *ggml_version()'),
    setLog: base.func('void ggml_log_set(void *, void *)'),
    loadBackends: registry.func('void ggml_backend_load_all_from_path(const char *)'),
    deviceCount: registry.func('size_t ggml_backend_dev_count()'),
    deviceAt: registry.func('void *ggml_backend_dev_get(size_t)'),
    deviceByName: registry.func('void *ggml_backend_dev_by_name(const char *)'),
    deviceName: base.func('const char *ggml_backend_dev_name(void *)'),
    deviceDescription: base.func('const char *ggml_backend_dev_description(void *)'),
    deviceInit: base.func('void *ggml_backend_dev_init(void *, const char *)'),
    deviceRegistry: base.func('void *ggml_backend_dev_backend_reg(void *)'),
    procAddress: base.func('void *ggml_backend_reg_get_proc_address(void *, const char *)'),
    backendFree: base.func('void ggml_backend_free(void *)'),
    backendSupports: base.func('bool ggml_backend_supports_op(void *, void *)'),
    backendBufferType: base.func('void *ggml_backend_get_default_buffer_type(void *)'),
  };
}

function bindMemory(base: LibraryHandle): Part<MemoryNames> {
  const initParameters = koffi.struct({ mem_size: 'size_t', mem_buffer: 'void *', no_alloc: 'bool' });
  return {
    init: base.func('ggml_init', 'void *', [initParameters]),
    free: base.func('void ggml_free(void *)'),
    allocateContext: base.func('void *ggml_backend_alloc_ctx_tensors(void *, void *)'),
    bufferTypeName: base.func('const char *ggml_backend_buft_name(void *)'),
    bufferTypeAllocate: base.func('void *ggml_backend_buft_alloc_buffer(void *, size_t)'),
    bufferTypeAlignment: base.func('size_t ggml_backend_buft_get_alignment(void *)'),
    bufferTypeSize: base.func('size_t ggml_backend_buft_get_alloc_size(void *, void *)'),
    bufferBase: base.func('void *ggml_backend_buffer_get_base(void *)'),
    tensorData: base.func('void *ggml_get_data(void *)'),
    tensorBytes: base.func('size_t ggml_nbytes(void *)'),
    tensorPlace: base.func('int ggml_backend_tensor_alloc(void *, void *, void *)'),
    bufferClear: base.func('void ggml_backend_buffer_clear(void *, uint8_t)'),
    bufferFree: base.func('void ggml_backend_buffer_free(void *)'),
    tensorSet: base.func('void ggml_backend_tensor_set(void *, const void *, size_t, size_t)'),
    tensorGet: base.func('void ggml_backend_tensor_get(void *, void *, size_t, size_t)'),
    tensorOverhead: base.func('size_t ggml_tensor_overhead()'),
    graphOverhead: base.func('size_t ggml_graph_overhead_custom(size_t, bool)'),
    newGraph: base.func('void *ggml_new_graph_custom(void *, size_t, bool)'),
    expand: base.func('void ggml_build_forward_expand(void *, void *)'),
    compute: base.func('int ggml_backend_graph_compute(void *, void *)'),
    setOutput: base.func('void ggml_set_output(void *)'),
    opDescription: base.func('const char *ggml_op_desc(void *)'),
    allocatorNew: base.func('void *ggml_gallocr_new(void *)'),
    allocatorReserve: base.func('bool ggml_gallocr_reserve(void *, void *)'),
    allocatorAllocate: base.func('bool ggml_gallocr_alloc_graph(void *, void *)'),
    allocatorSize: base.func('size_t ggml_gallocr_get_buffer_size(void *, int)'),
    allocatorFree: base.func('void ggml_gallocr_free(void *)'),
    newTensor: base.func('void *ggml_new_tensor_4d(void *, int, int64_t, int64_t, int64_t, int64_t)'),
    typeName: base.func('const char *ggml_type_name(int)'),
    blockSize: base.func('int64_t ggml_blck_size(int)'),
    typeSize: base.func('size_t ggml_type_size(int)'),
    quantizeChunk: base.func(
      'size_t ggml_quantize_chunk(int, const float *, void *, int64_t, int64_t, int64_t, const float *)',
    ),
  };
}

function bindOperations(base: LibraryHandle): Omit<GgmlFunctions, DeviceNames | MemoryNames> {
  const unary = (name: string) => base.func(`void *${name}(void *, void *)`);
  const binary = (name: string) => base.func(`void *${name}(void *, void *, void *)`);
  const four = 'int64_t, int64_t, int64_t, int64_t';
  return {
    view: base.func(`void *ggml_view_4d(void *, void *, ${four}, size_t, size_t, size_t, size_t)`),
    reshape: base.func(`void *ggml_reshape_4d(void *, void *, ${four})`),
    permute: base.func('void *ggml_permute(void *, void *, int, int, int, int)'),
    cont: unary('ggml_cont'),
    cpy: binary('ggml_cpy'),
    cast: base.func('void *ggml_cast(void *, void *, int)'),
    repeat: base.func(`void *ggml_repeat_4d(void *, void *, ${four})`),
    pad: base.func('void *ggml_pad(void *, void *, int, int, int, int)'),
    concat: base.func('void *ggml_concat(void *, void *, void *, int)'),
    getRows: binary('ggml_get_rows'),
    setRows: base.func('void *ggml_set_rows(void *, void *, void *, void *)'),
    mulMat: binary('ggml_mul_mat'),
    mulMatId: base.func('void *ggml_mul_mat_id(void *, void *, void *, void *)'),
    outProd: binary('ggml_out_prod'),
    add: binary('ggml_add'),
    mul: binary('ggml_mul'),
    div: binary('ggml_div'),
    scale: base.func('void *ggml_scale(void *, void *, float)'),
    scaleBias: base.func('void *ggml_scale_bias(void *, void *, float, float)'),
    sub: binary('ggml_sub'),
    log: unary('ggml_log'),
    pool2d: base.func('void *ggml_pool_2d(void *, void *, int, int, int, int, int, float, float)'),
    sqr: unary('ggml_sqr'),
    tanh: unary('ggml_tanh'),
    sigmoid: unary('ggml_sigmoid'),
    swiglu: binary('ggml_swiglu_split'),
    rmsNorm: base.func('void *ggml_rms_norm(void *, void *, float)'),
    softMax: base.func('void *ggml_soft_max_ext(void *, void *, void *, float, float)'),
    softMaxAddSinks: base.func('void ggml_soft_max_add_sinks(void *, void *)'),
    rope: base.func(
      'void *ggml_rope_ext(void *, void *, void *, void *, int, int, int, float, float, float, float, float, float)',
    ),
    flash: base.func('void *ggml_flash_attn_ext(void *, void *, void *, void *, void *, float, float, float)'),
  };
}
