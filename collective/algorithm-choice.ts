/**
 * Which algorithm carries an all-reduce of how many elements. By message size until it has been measured among the ranks
 * that are there: latency and width of links, cores and their load differ too much for one limit. With float32 on the
 * wire all algorithms give the same bits, so what is chosen changes no result. Read next: exchange.ts.
 */

export const allReduceAlgorithms = ['direct', 'ring', 'scatter'] as const;
export type AllReduceAlgorithm = (typeof allReduceAlgorithms)[number];

/** @param floats elements of the whole all-reduce */
export type AlgorithmChoice = (floats: number) => AllReduceAlgorithm;

/**
 * Measured with 2 and 4 ranks on 2 cores over ipc, p50: direct is ahead at 4096 floats (116 against 149 us; 606 against
 * 848), the ring at 16384 (290 against 243; 1326 against 1158).
 */
export const bySize: AlgorithmChoice = (floats) => (floats <= 8192 ? 'direct' : 'ring');

/** From one row of a small model to a prompt's chunk of a large one. */
const measuredFloats = [512, 4096, 32_768, 262_144];
const repeats = 3;
/** Longer ones are not tried once an algorithm takes this long: a slow link has shown itself. */
const enoughMs = 5;

export interface MeasuredAlgorithm {
  readonly floats: number;
  readonly best: AllReduceAlgorithm;
}

/**
 * Called by all ranks at once; every rank comes to the same choice, because it is made from the sum of all ranks' times.
 * @param sum one all-reduce by the named algorithm  @throws what it throws
 */
export async function measureAlgorithms(
  sum: (algorithm: AllReduceAlgorithm, buffer: Float32Array) => Promise<void>,
  worldSize: number,
): Promise<MeasuredAlgorithm[]> {
  const measured: MeasuredAlgorithm[] = [];
  for (const floats of measuredFloats) {
    const buffer = new Float32Array(floats);
    const times = new Float32Array(allReduceAlgorithms.length); // milliseconds
    for (const [i, algorithm] of allReduceAlgorithms.entries()) times[i] = await medianMs(() => sum(algorithm, buffer));
    await sum('direct', times);
    const best = allReduceAlgorithms[times.indexOf(Math.min(...times))] ?? 'direct';
    measured.push({ floats, best });
    if (Math.max(...times) / worldSize > enoughMs) break;
  }
  return measured;
}

/** Between two measured sizes the nearer one on a logarithmic scale decides. */
export function choiceOf(measured: readonly MeasuredAlgorithm[]): AlgorithmChoice {
  return (floats) => {
    const nearest = measured.findLast(({ floats: size }, i) => {
      const smaller = measured[i - 1]?.floats;
      return smaller === undefined || floats > Math.sqrt(smaller * size);
    });
    return nearest?.best ?? bySize(floats);
  };
}

async function medianMs(work: () => Promise<void>): Promise<number> {
  await work();
  const times: number[] = [];
  for (let i = 0; i < repeats; i++) {
    const start = performance.now();
    await work();
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[repeats >> 1] ?? 0;
}
