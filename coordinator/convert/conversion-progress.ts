/**
 * How far a conversion has come, in its scratch folder, so that one that was killed or interrupted goes on where it was:
 * the text that the model wrote, perplexity before, the sizes, and after a refitted layer the ranks' residual streams.
 * Nothing here decides anything: a conversion that goes on gives the bytes of one that was never cut off.
 * Read next: output-folder.ts (who may go on), convert-refitted.ts.
 */
import { readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { z } from 'zod';

const windows = z.array(z.array(z.int()));
const measured = z.number().nullable();
const lossSchema = z.strictObject({
  rotation: z.number(),
  rank: z.number(),
  headsMissed: measured,
  headsMissedRefitted: measured,
  outputMissed: measured,
});
const stateSchema = z.strictObject({
  text: z.strictObject({ windows, heldOut: windows }).optional(),
  originalPpl: z.number().optional(),
  settings: z.strictObject({ ropeDim: z.int(), latentDim: z.int() }).optional(),
  /** Of the layers that are stored and behind which the streams are. */
  losses: z.array(lossSchema).optional(),
});
type State = z.infer<typeof stateSchema>;

/** Streams are saved so seldom that it takes at most this share of the time. */
const shareOfTime = 0.05;

export class ConversionProgress {
  readonly #folder: string;
  #state: State;
  #lastSave = performance.now();
  #saveMs = 0;

  private constructor(folder: string, state: State) {
    this.#folder = folder;
    this.#state = state;
  }

  /** @param folder of the conversion; what cannot be read there was never finished, and counts as nothing */
  static async open(folder: string): Promise<ConversionProgress> {
    try {
      const written: unknown = JSON.parse(await readFile(join(folder, 'state.json'), 'utf8'));
      return new ConversionProgress(folder, stateSchema.parse(written));
    } catch {
      return new ConversionProgress(folder, {});
    }
  }

  get state(): Readonly<State> {
    return this.#state;
  }

  async save(more: Partial<State>): Promise<void> {
    this.#state = { ...this.#state, ...more };
    // Renamed when it is whole: a process may be killed while it writes.
    const path = join(this.#folder, 'state.json');
    await writeFile(`${path}.part`, JSON.stringify(this.#state));
    await rename(`${path}.part`, path);
  }

  /** Whether the time for saving streams has come. */
  isDue(): boolean {
    return performance.now() - this.#lastSave > this.#saveMs / shareOfTime;
  }

  /** @param losses of all layers so far  @param streams of Calibration.streams */
  async saveLayers(losses: NonNullable<State['losses']>, streams: () => Promise<Float32Array>): Promise<void> {
    const start = performance.now();
    const values = await streams();
    await writeFile(
      this.#streamsPath(losses.length),
      new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
    );
    const before = this.#state.losses?.length;
    await this.save({ losses });
    if (before !== undefined) await rm(this.#streamsPath(before), { force: true });
    this.#lastSave = performance.now();
    this.#saveMs = this.#lastSave - start;
  }

  /** All layers are stored: their streams are not needed any more. */
  async saveLastLayer(losses: NonNullable<State['losses']>): Promise<void> {
    const before = this.#state.losses?.length;
    await this.save({ losses });
    if (before !== undefined) await rm(this.#streamsPath(before), { force: true });
  }

  /** As they were behind the last of the saved layers. */
  async streams(): Promise<Float32Array> {
    const bytes = await readFile(this.#streamsPath(this.#state.losses?.length ?? 0));
    return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  }

  #streamsPath(layers: number): string {
    return join(this.#folder, `streams-${layers}`);
  }
}
