/**
 * The threads that run a device's programs. ggml's CPU device makes a pool for each graph unless it is given one: 1 us of
 * memory management with one thread, and the start and end of a thread, 150 us and more, with two. Other devices have no
 * threads of their own.
 */
import koffi from 'koffi';
import type { GgmlFunctions, Pointer } from './functions.ts';
import { check } from './tensor.ts';

/** GGML_MAX_N_THREADS */
const MAX_THREADS = 512;

/** ggml_threadpool_params. No affinity; poll 0: between programs the threads sleep, so an idle rank takes no core. */
const parameters = koffi.struct({
  cpumask: koffi.array('bool', MAX_THREADS),
  n_threads: 'int',
  prio: 'int',
  poll: 'uint32_t',
  strict_cpu: 'bool',
  paused: 'bool',
});

export class DeviceThreads {
  readonly #functions: GgmlFunctions;
  readonly #registry: Pointer;
  readonly #pool: Pointer | undefined;

  constructor(functions: GgmlFunctions, device: Pointer, backend: Pointer, threads: number) {
    check(threads <= MAX_THREADS, `${threads} threads: at most ${MAX_THREADS}`);
    this.#functions = functions;
    this.#registry = functions.deviceRegistry(device);
    this.#call('ggml_backend_set_n_threads', 'void', ['void *', 'int'], backend, threads);
    const settings = { n_threads: threads, prio: 0, poll: 0, strict_cpu: false, paused: false };
    const cpumask = new Array<boolean>(MAX_THREADS).fill(false);
    const given = koffi.as({ cpumask, ...settings }, koffi.pointer(parameters));
    this.#pool = this.#call('ggml_threadpool_new', 'void *', ['void *'], given);
    if (this.#pool === undefined) return;
    this.#call('ggml_backend_cpu_set_threadpool', 'void', ['void *', 'void *'], backend, this.#pool);
  }

  /** After the backend: it must not run anything any more. */
  free(): void {
    if (this.#pool !== undefined) this.#call('ggml_threadpool_free', 'void', ['void *'], this.#pool);
  }

  /** Calls a function of the device's own library. undefined: it has none of that name, or returned nothing */
  #call(name: string, returns: string, takes: string[], ...given: readonly unknown[]): Pointer | undefined {
    const address = this.#functions.procAddress(this.#registry, name);
    if (address === null) return undefined;
    const result: Pointer | null | undefined = koffi.call(address, koffi.proto(returns, takes), ...given);
    return result ?? undefined;
  }
}
