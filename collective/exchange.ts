/**
 * Sums and gathers over a transport, by the algorithm that is faster for the size of the message.
 * Read next: algorithm-choice.ts, then ring.ts, direct.ts, scatter.ts (algorithms).
 */
import {
  type AlgorithmChoice,
  type AllReduceAlgorithm,
  bySize,
  choiceOf,
  measureAlgorithms,
} from './algorithm-choice.ts';
import { directAllGather, directAllReduce } from './direct.ts';
import type { Payload } from './payload.ts';
import { ringAllGather, ringAllReduce } from './ring.ts';
import type { Transport } from './ring.ts';
import { scatterAllReduce } from './scatter.ts';

export type ZeroMqAlgorithm = 'auto' | AllReduceAlgorithm;

export type RunOperation = (floats: number, work: () => Promise<void>) => Promise<void>;

export class Exchange {
  readonly #transport: Transport;
  readonly #algorithm: ZeroMqAlgorithm;
  #choice: AlgorithmChoice;
  #scratch: Float32Array[] = []; // [worldSize][longest direct all-reduce so far]

  /** @param algorithm the same on all ranks; auto: by message size, or as measured */
  constructor(transport: Transport, algorithm: ZeroMqAlgorithm) {
    this.#transport = transport;
    this.#algorithm = algorithm;
    this.#choice = algorithm === 'auto' ? bySize : () => algorithm;
  }

  /** Of an operation of so many elements. */
  algorithmOf(floats: number): AllReduceAlgorithm {
    return this.#choice(floats);
  }

  /**
   * From now on by measured cost, unless the algorithm is fixed. Called by all ranks at once.
   * @param run runs one operation of so many elements, the same on all ranks
   */
  async measure(run: RunOperation): Promise<void> {
    if (this.#algorithm !== 'auto') return;
    const sum = (algorithm: AllReduceAlgorithm, buffer: Float32Array): Promise<void> =>
      run(buffer.length, () => this.#allReduceBy(algorithm, buffer, 'f32'));
    this.#choice = choiceOf(await measureAlgorithms(sum, this.#transport.worldSize));
  }

  /** The same bits for every algorithm, where the payload is f32. */
  allReduce(buffer: Float32Array, payload: Payload): Promise<void> {
    // A rounded sum depends on the algorithm: it must not depend on a measurement, too.
    const choice = payload === 'f32' || this.#algorithm !== 'auto' ? this.#choice : bySize;
    return this.#allReduceBy(choice(buffer.length), buffer, payload);
  }

  #allReduceBy(algorithm: AllReduceAlgorithm, buffer: Float32Array, payload: Payload): Promise<void> {
    if (algorithm === 'direct')
      return directAllReduce(this.#transport, buffer, this.#scratchOf(buffer.length), payload);
    // Around the ring a partial sum would be rounded at every step.
    if (algorithm === 'ring' && payload === 'f32') return ringAllReduce(this.#transport, buffer);
    const chunkFloats = Math.ceil(buffer.length / this.#transport.worldSize);
    return scatterAllReduce(this.#transport, buffer, this.#scratchOf(chunkFloats), payload);
  }

  /**
   * Around the ring as many bytes are sent as directly, so only steps count; but a host's link then carries one transfer
   * at a time instead of worldSize - 1 that compete.
   * @param parts [worldSize] views of the result of `floats` elements; this rank's is already there
   */
  allGather(parts: readonly Float32Array[], floats: number): Promise<void> {
    const isLong = this.algorithmOf(floats) !== 'direct';
    return isLong ? ringAllGather(this.#transport, parts) : directAllGather(this.#transport, parts);
  }

  #scratchOf(length: number): Float32Array[] {
    if ((this.#scratch[0]?.length ?? 0) < length) {
      this.#scratch = Array.from({ length: this.#transport.worldSize }, () => new Float32Array(length));
    }
    return this.#scratch;
  }
}
