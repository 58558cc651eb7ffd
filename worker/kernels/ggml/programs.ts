/**
 * Compiles a set of programs whose intermediate results share one scratch buffer, and runs them. The buffer is made as
 * large as the largest program needs before any program gets its addresses, so that no later one moves it.
 */
import type { ProgramBuilder, ProgramSet, Tensor } from '../kernels.ts';
import type { Constants } from './compound.ts';
import type { GgmlFunctions, Pointer } from './functions.ts';
import { GraphRecorder, type RecordedGraph } from './graph.ts';
import { GgmlOps } from './ops.ts';
import { KernelError, check } from './tensor.ts';

/** ggml_status */
const STATUS: Readonly<Record<number, string>> = { 1: 'aborted', [-1]: 'failed', [-2]: 'out of memory' };

export function compilePrograms(
  functions: GgmlFunctions,
  backend: Pointer,
  constants: Constants,
  builders: readonly ProgramBuilder[],
): ProgramSet {
  const recorded: RecordedGraph[] = [];
  const allocator = functions.allocatorNew(functions.backendBufferType(backend));
  try {
    for (const builder of builders) recorded.push(record(functions, backend, constants, builder));
    placeInScratch(
      functions,
      allocator,
      recorded.flatMap(({ graph }) => graph ?? []),
    );
    return new GgmlPrograms(functions, backend, allocator, recorded);
  } catch (error) {
    freePrograms(functions, allocator, recorded);
    throw error;
  }
}

class GgmlPrograms implements ProgramSet {
  readonly outputs: readonly (readonly Tensor[])[];
  readonly #functions: GgmlFunctions;
  readonly #backend: Pointer;
  readonly #allocator: Pointer;
  readonly #recorded: readonly RecordedGraph[];
  readonly #graphs: readonly (Pointer | undefined)[];
  #disposed = false;

  constructor(functions: GgmlFunctions, backend: Pointer, allocator: Pointer, recorded: readonly RecordedGraph[]) {
    this.#functions = functions;
    this.#backend = backend;
    this.#allocator = allocator;
    this.#recorded = recorded;
    this.#graphs = recorded.map(({ graph }) => graph);
    this.outputs = recorded.map(({ outputs }) => outputs);
  }

  run(index: number): void {
    const graph = this.#graphs[index];
    // Messages are built on failure only: this runs several times per token.
    if (graph === undefined || this.#disposed) return this.#runNothing(index);
    const status = this.#functions.compute(this.#backend, graph);
    if (status !== 0) throw new KernelError(`ggml: program ${index} failed with ${STATUS[status] ?? status}`);
  }

  #runNothing(index: number): void {
    check(!this.#disposed, `run of program ${index} after disposal`);
    check(index in this.#graphs, `run of program ${index} of ${this.#graphs.length}`);
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    freePrograms(this.#functions, this.#allocator, this.#recorded);
  }
}

function record(
  functions: GgmlFunctions,
  backend: Pointer,
  constants: Constants,
  builder: ProgramBuilder,
): RecordedGraph {
  const recorder = new GraphRecorder(functions, backend);
  try {
    return recorder.finish(builder(new GgmlOps(recorder, constants)));
  } catch (error) {
    recorder.abandon();
    throw error;
  }
}

function placeInScratch(functions: GgmlFunctions, allocator: Pointer, graphs: readonly Pointer[]): void {
  for (const graph of graphs) check(functions.allocatorReserve(allocator, graph), 'no memory for intermediate results');
  const size = functions.allocatorSize(allocator, 0);
  for (const graph of graphs) {
    check(functions.allocatorAllocate(allocator, graph), 'no memory for intermediate results');
    // A growing buffer moves, and the programs placed before would compute in freed memory.
    check(functions.allocatorSize(allocator, 0) === size, 'scratch memory moved while programs were placed in it');
  }
}

function freePrograms(functions: GgmlFunctions, allocator: Pointer, recorded: readonly RecordedGraph[]): void {
  functions.allocatorFree(allocator);
  for (const { contexts } of recorded) for (const context of contexts) functions.free(context);
}
